"""A class is commissioned on the page, in a real headless Chromium: at phone width, with the keyboard alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from anomalysd_edge.bundle import versions
from anomalysd_runtime.server.settings import RecordSettings
from tests.support.browser import PHONE, all_of, needs_browser, one, press, until
from tests.support.parts import part
from tests.support.serving import running_box, small_settings
from tests.support.small_graphs import small_bundle

pytestmark = [pytest.mark.slow, pytest.mark.net]

SHOTS = [part(seed, mottle=10) for seed in range(4)]
LINE = [part(seed, mottle=10) for seed in range(10, 26)] + [part(seed, mottle=10, spot=18) for seed in range(40, 42)]
BAD = {hashlib.sha256(photo).hexdigest() for photo in LINE[-2:]}
STATE = "/classes/washer/commissioning"
TAB, ENTER = "\ue004", "\n"


def photo_asked(browser: Any) -> str | None:
    found = browser.execute_script("return learn.busy ? null : learn.photo && learn.photo.uid")
    return None if found is None else str(found)


@needs_browser
def test_a_class_is_taught_answered_accepted_and_taken_back_with_keys_on_a_phone(browser: Any, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "line1").path
    for number, photo in enumerate(SHOTS):
        (tmp_path / f"good-{number}.png").write_bytes(photo)
    record = RecordSettings(tmp_path / "record.sqlite", keep_photo=True, keep_map=True)
    with running_box(small_settings(bundle, record=record)) as box:
        browser.get(f"http://127.0.0.1:{box.port}/")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        until(lambda: one(browser, "#class").get_attribute("value") == "bottle", "the classes are there")
        one(browser, "#teach-open").send_keys(ENTER)
        one(browser, "#teach-pick").send_keys("\n".join(str(tmp_path / f"good-{n}.png") for n in range(4)))
        one(browser, "#teach-name").send_keys("washer\n")
        until(lambda: one(browser, "#teach-learn").is_displayed(), "the class is taught", 60)
        taught = versions.bundle_id(bundle)
        one(browser, "#teach-learn").send_keys(ENTER)
        until(lambda: "0 of 8 photos seen" in one(browser, "#learn-reason").text, "it waits for the stream")
        assert not one(browser, "#learn-good").is_enabled()
        for photo in LINE:
            assert box.inspect(photo, "?class=washer").status == 200
        until(lambda: photo_asked(browser), "a photo is asked about")
        until(lambda: one(browser, "#learn-photo").get_property("naturalWidth") == 64, "it is shown as it came")
        until(lambda: one(browser, "#learn-heat").get_property("naturalWidth") == 16, "under its heat map")
        assert "would become" in one(browser, "#learn-why").text
        assert browser.execute_script("return document.querySelector('#learn').scrollWidth") <= 390
        for element in all_of(browser, "#learn button"):
            assert element.size["height"] >= 36, element.get_attribute("outerHTML")
        press(browser, "h")
        assert one(browser, "#learn-heat").value_of_css_property("opacity") == "0"

        seen = []
        for number in range(1, 11):
            asked = until(lambda: photo_asked(browser), "a photo is asked about")
            press(browser, "n" if box.get(f"/verdicts/{asked}").json["photo_sha256"] in BAD else "o")
            until(lambda asked=asked: photo_asked(browser) not in (None, asked), "the next photo")  # type: ignore[misc]
            state = box.get(STATE).json
            assert state["answers"]["good"] + state["answers"]["bad"] == number
            shown = one(browser, "#learn-rates").text
            assert f"{state['proposed']['threshold']:.4g}" in shown
            rate = state["proposed"]["expected"]["missed"]
            assert f"{100 * rate['mean']:.0f} % ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})" in shown
            seen.append(shown)
        assert len(set(seen)) == 10, "every answer moves the figures"
        asked = photo_asked(browser)
        press(browser, "s")
        until(lambda: box.get(STATE).json["answers"]["skipped"] == 1, "it is skipped")
        until(lambda: photo_asked(browser) not in (None, asked), "the next photo")
        press(browser, "u")
        until(lambda: photo_asked(browser) == asked, "the skipped one is asked about again")
        assert box.get(STATE).json["answers"]["skipped"] == 0

        (tmp_path / "known.png").write_bytes(part(60, mottle=10, spot=18))
        before = one(browser, "#learn-rates").text
        one(browser, "#learn-known").send_keys(str(tmp_path / "known.png"))
        until(lambda: "1 known defect taken" in one(browser, "#learn-said").text, "a known defect is evidence")
        assert one(browser, "#learn-rates").text != before
        state = box.get(STATE).json
        assert state["answers"]["known-bad"] == 1
        assert state["share"]["mean"] < 0.3, "it says nothing of how many the line makes"

        assert state["changes"], "limits around a threshold that few photos gave are wide"
        assert f"would change: {len(state['changes'])}" in one(browser, "#learn-changes-title").text
        words = {"good": "OK", "anomalous": "NG", "uncertain": "UNSURE"}
        change = state["changes"][0]
        assert one(browser, "#learn-changes span").text == f"{words[change['now']]} → {words[change['proposed']]}"
        uid, now = change["uid"], state["now"]["threshold"]
        press(browser, "a")
        assert browser.switch_to.active_element.get_attribute("id") == "learn-accept"
        press(browser, ENTER)
        until(lambda: one(browser, "#learn-said").text.startswith("live: threshold"), "it is accepted", 90)
        accepted = versions.bundle_id(bundle)
        assert accepted != taught
        assert box.inspect(LINE[0], "?class=washer").json["bundle_id"] == accepted
        assert "accepted on 18 photos of the line" in one(browser, "#learn-versions li").text
        after = box.get(STATE).json
        assert uid in box.get("/verdicts?class=washer").body.decode()
        assert after["now"]["threshold"] != now

        one(browser, "#learn-versions button").send_keys(ENTER)
        until(lambda: f"back: the bundle is {taught} again" in one(browser, "#learn-said").text, "one click back")
        assert versions.bundle_id(bundle) == taught
        until(lambda: f"{now:.4g}" in one(browser, "#learn-rates").text, "with the threshold that it had")
        browser.save_screenshot(str(tmp_path / "back.png"))
        press(browser, TAB)
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        wrong = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert wrong == []
        browser.get("about:blank")
