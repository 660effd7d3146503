"""The page in a real headless Chromium: a photo goes in, a verdict is seen, by mouse and by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from anomalysd_edge.bundle import versions
from anomalysd_edge.demo.dataset import render_part
from anomalysd_edge.method.score_model import Limits
from anomalysd_edge.vision import images
from anomalysd_runtime.server.settings import RecordSettings, SecuritySettings
from tests.support.browser import PHONE, all_of, needs_browser, one, press, until
from tests.support.serving import Box, open_touchy, png, running_box, small_settings
from tests.support.small_graphs import THREE_WAY, small_bundle

pytestmark = [pytest.mark.slow, pytest.mark.net]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    bundle = small_bundle(tmp_path_factory.mktemp("page") / "line1").path
    record = RecordSettings(tmp_path_factory.mktemp("record") / "record.sqlite")
    with running_box(replace(small_settings(bundle), record=record), open_touchy) as opened:
        yield opened


def give(browser: Any, photos: list[Path]) -> None:
    one(browser, "#pick").send_keys("\n".join(map(str, photos)))


def is_loaded(picture: Any) -> bool:
    return bool(picture.get_property("naturalWidth") == 16)


@needs_browser
def test_a_photo_becomes_a_verdict_that_can_be_judged(browser: Any, box: Box, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"part-{number}.png").write_bytes(png(number))
    browser.get(f"http://127.0.0.1:{box.port}/")
    until(lambda: one(browser, "#class").get_attribute("value") == "bottle", "the classes are there")
    give(browser, [tmp_path / f"part-{number}.png" for number in range(6)])
    until(lambda: len(all_of(browser, "#list li")) == 6, "six verdicts in the list")
    until(lambda: one(browser, "#word").text in ("OK", "NG"), "a verdict in large letters")
    newest = box.get("/verdicts?limit=1").json["verdicts"][0]
    press(browser, "k" * 8)
    until(lambda: f"score {newest['pred_score']:.3f}" in one(browser, "#score").text, "the newest score is shown")
    word = {"good": "OK", "anomalous": "NG"}[newest["verdict"]]
    assert one(browser, "#word").text == word
    for kind in ("#photo", "#heat", "#repaint"):
        picture = one(browser, kind)
        until(partial(is_loaded, picture), f"{kind} is loaded")
    press(browser, "n")
    until(lambda: box.get(f"/verdicts/{newest['uid']}").json["correction"] == "ng", "the correction is recorded")
    press(browser, "o")
    until(lambda: box.get(f"/verdicts/{newest['uid']}").json["correction"] == "ok", "the correction was changed")
    press(browser, "4")
    assert one(browser, "#repaint").value_of_css_property("opacity") == "1"
    press(browser, "+++")
    assert "80%" in one(browser, "#repaint").get_attribute("style")


@needs_browser
def test_the_threshold_is_moved_with_the_mouse(browser: Any, box: Box) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    before = one(browser, "#effect").text
    plot = one(browser, "#plot")
    ActionChains(browser).move_to_element(plot).click_and_hold().move_by_offset(90, 0).release().perform()
    until(lambda: one(browser, "#effect").text != before, "the effect is told")
    assert "trial on this page only" in one(browser, "#trial").text
    low = float(plot.get_attribute("aria-valuenow"))
    verdicts = box.get("/verdicts").json["verdicts"]
    above = sum(v["pred_score"] >= low for v in verdicts)
    assert f"{above} NG of the last {len(verdicts)}" in one(browser, "#effect").text
    press(browser, "t\ue014\ue014")
    assert float(plot.get_attribute("aria-valuenow")) > low
    one(browser, "#reset").click()
    assert "own" in one(browser, "#trial").text


@needs_browser
def test_a_verdict_of_another_client_appears_by_itself(browser: Any, box: Box) -> None:
    told = box.inspect(png(40)).json
    until(lambda: one(browser, "#list li").get_attribute("data-uid") == told["uid"], "the list follows")


@needs_browser
def test_bad_photos_are_told_in_words(browser: Any, box: Box, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(png(1)[:90])
    give(browser, [tmp_path / "broken.png"])
    until(lambda: "broken.png" in one(browser, "#problem").text, "the problem is named")


@needs_browser
def test_it_fits_a_phone_and_asks_no_other_host(browser: Any, box: Box) -> None:
    browser.set_window_size(500, 900)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    shown = [element for element in all_of(browser, "button, select") if element.is_displayed()]
    assert shown
    for element in shown:
        assert element.size["height"] >= 36, element.get_attribute("outerHTML")
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked
    assert all(name.startswith((f"http://127.0.0.1:{box.port}/", "blob:")) for name in asked)
    wrong = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "422" not in entry["message"]
    ]
    assert wrong == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_a_third_answer_has_its_own_word_colour_and_limits(browser: Any, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "line1", **{**THREE_WAY, "decision": Limits(0.25, 4.0)}).path
    (tmp_path / "part.png").write_bytes(png(1))
    with running_box(small_settings(bundle)) as box:
        browser.get(f"http://127.0.0.1:{box.port}/")
        until(lambda: one(browser, "#class").get_attribute("value") == "bottle", "the classes are there")
        give(browser, [tmp_path / "part.png"])
        until(lambda: one(browser, "#word").text == "UNSURE", "the third word")
        (told,) = box.get("/verdicts").json["verdicts"]
        assert "threshold 0.750" in one(browser, "#score").text
        shown = one(browser, "#sure").text
        assert shown == f"{100 * told['pred_probability']:.0f} % defective · unsure 0.250 to 4.000"
        colour = one(browser, "#verdict").value_of_css_property("background-color")
        assert colour not in ("rgba(19, 122, 58, 1)", "rgba(192, 33, 26, 1)", "rgba(91, 100, 114, 1)")
        assert len(all_of(browser, "#plot .limit")) == 2
        assert one(browser, "#plot circle:not(.grip)").get_attribute("class") == "unsure"
        assert "Unsure from 0.250 to 4.000: 1." in one(browser, "#effect").text
        cells = [cell.text for cell in all_of(browser, "#table td")]
        assert cells[:4] == ["bottle", "0", "0", "1"]
        # A threshold that is tried decides alone.
        press(browser, "t\ue014")
        until(lambda: "at the trial" in one(browser, "#list b").text, "the trial's answer")
        assert one(browser, "#plot circle:not(.grip)").get_attribute("class") in ("ok", "ng")
        browser.get("about:blank")


@needs_browser
def test_a_class_is_taught_and_taken_back_on_a_phone(browser: Any, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "line1").path
    first = versions.bundle_id(bundle)
    for number in range(3):
        photo = render_part("demo_washer", (3, number), 96).photo()
        images.save_png(tmp_path / f"good-{number}.png", photo)
    shutil.copy(tmp_path / "good-0.png", tmp_path / "copy.png")
    with running_box(small_settings(bundle)) as box:
        browser.get(f"http://127.0.0.1:{box.port}/")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        until(lambda: one(browser, "#class").get_attribute("value") == "bottle", "the classes are there")
        one(browser, "#teach-open").send_keys("\n")
        assert browser.switch_to.active_element.get_attribute("id") == "teach-name", "typing begins at once"
        assert one(browser, "#teach-camera").get_attribute("capture") == "environment"
        one(browser, "#teach-pick").send_keys("\n".join(str(tmp_path / n) for n in (
            "good-0.png", "good-1.png", "good-2.png", "copy.png",
        )))  # fmt: skip
        until(lambda: one(browser, "#teach-count").text == "4 photos", "the photos are listed")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        one(browser, "#teach-noun").send_keys("steel washer")
        one(browser, "#teach-name").send_keys("washer\n")
        until(lambda: not one(browser, "#teach-busy").is_displayed() and one(browser, "#teach-said").text, "an answer")
        said = one(browser, "#teach-said").text
        assert "washer is live, taught from 3 photos" in said
        assert "copy.png is the same photo as good-0.png: left out" in said
        assert "false alarms" in said
        shown = all_of(browser, "#teach-preview img")
        assert [picture.get_property("naturalWidth") for picture in shown] == [16] * 3, "each held-out photo"
        assert "· good-1.png" in one(browser, "#teach-preview li:nth-child(2)").text
        browser.save_screenshot(str(tmp_path / "taught.png"))
        until(lambda: one(browser, "#class").get_attribute("value") == "washer", "the class is chosen")
        told = box.get("/bundles").json["bundles"][0]
        assert sorted(told["classes"]) == ["bottle", "washer"]
        assert f"threshold {told['classes']['washer']['threshold']:.3f}" in said
        one(browser, "#teach-back").send_keys("\n")
        until(lambda: f"the bundle is {first} again" in one(browser, "#teach-said").text, "it was taken back")
        assert versions.bundle_id(bundle) == box.get("/bundles").json["bundles"][0]["bundle_id"] == first
        one(browser, "#teach-pick").send_keys(str(tmp_path / "good-1.png"))
        one(browser, "#teach-name").clear()
        one(browser, "#teach-name").send_keys("a/b\n")
        until(lambda: "cannot name a class" in one(browser, "#teach-said").text, "the fault is told")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.get("about:blank")


@needs_browser
def test_a_box_with_tokens_asks_for_one(browser: Any, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "line1").path
    security = SecuritySettings(tokens={"line": "0123456789abcdef0123"})
    with running_box(replace(small_settings(bundle), security=security)) as box:
        browser.get(f"http://127.0.0.1:{box.port}/")
        until(lambda: one(browser, "#login").get_attribute("open") is not None, "the token is asked for")
        one(browser, "#token").send_keys("0123456789abcdef0123\n")
        until(lambda: one(browser, "#class").get_attribute("value") == "bottle", "the box lets the page in")
        browser.get("about:blank")


def test_the_page_is_whole_and_small(box: Box) -> None:
    sizes = 0
    for path in ("/", "/static/app.js", "/static/teach.js", "/static/learn.js", "/static/style.css"):
        found = box.get(path)
        assert found.status == 200
        assert b"http://" not in found.body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in found.body
        sizes += len(found.body)
        assert box.get(path, **{"if-none-match": found.headers["etag"]}).status == 304
    assert sizes < 60_000
    assert box.get("/static/../app.py").status == 404
    assert box.get("/static/%2e%2e%2fapp.py").status == 404
