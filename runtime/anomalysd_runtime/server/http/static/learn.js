"use strict";
// A class that is being learnt: its stream, one photo at a time, and what the answers make of its thresholds. Uses app.js.

const learn = { state: null, photo: null, back: [], heat: true, timer: 0, busy: false };
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const figure = (value) => (value === null ? "none" : Number(value.toPrecision(4)).toString());
const between = (rate) => `${percent(rate.mean)} (${(100 * rate.low).toFixed(0)} to ${(100 * rate.high).toFixed(0)})`;
const SAID = { good: "OK", bad: "NG", skip: "skipped" };

function learnUrl(what) {
  const bundle = $("bundle").value ? `?bundle=${encodeURIComponent($("bundle").value)}` : "";
  return `/classes/${encodeURIComponent($("class").value)}/${what}${bundle}`;
}

const post = (path, body) => json(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

function learnSays(sentence, fault = false) {
  $("learn-said").textContent = sentence;
  $("learn-said").classList.toggle("fault", fault);
}

async function attempt(what) { // one at a time: a key that is held down answers once
  if (learn.busy) return;
  learn.busy = true;
  try {
    await what();
  } catch (error) {
    learnSays(error.message, true);
  }
  learn.busy = false;
}

async function lookAgain() {
  clearTimeout(learn.timer);
  if (!$("learn").open) return;
  await attempt(async () => show(await json(learnUrl("commissioning"))));
  learn.timer = setTimeout(lookAgain, 3000);
}

function show(state, photo = null) {
  const kept = learn.photo && state.ask.find((one) => one.uid === learn.photo.uid);
  learn.state = state;
  showAsked(photo || kept || state.ask[0] || null);
  showRates();
  showChanges();
}

async function showAsked(photo) {
  const fresh = photo && photo.uid !== learn.photo?.uid;
  learn.photo = photo;
  $("learn-stage").dataset.empty = !photo;
  for (const name of ["learn-good", "learn-bad", "learn-skip"]) $(name).disabled = !photo;
  $("learn-undo").disabled = !learn.back.length;
  $("learn-heat").style.opacity = learn.heat ? 0.75 : 0;
  if (!photo) {
    const waits = learn.state.seen < 8 || !learn.state.ask.length;
    $("learn-why").textContent = waits ? "No photo is worth an answer just now: let parts go by." : "";
    return;
  }
  $("learn-why").textContent = `${photo.photo || photo.uid.slice(0, 8)} ${photo.why || ""}`;
  if (!fresh) return;
  const [picture, heat] = await Promise.all([pictureOf(photo.uid, photo.pictures.photo.split("/").pop()), pictureOf(photo.uid, "heat")]);
  if (learn.photo?.uid !== photo.uid) return;
  $("learn-picture").style.setProperty("--shape", photo.aspect);
  for (const [name, url] of [["learn-photo", picture], ["learn-heat", heat]]) {
    $(name).hidden = !url;
    if (url) $(name).src = url;
  }
}

function showRates() {
  const { state } = learn;
  const [now, next] = [state.now, state.proposed];
  $("learn-title").textContent = state.class;
  $("learn-state").textContent = state.state;
  $("learn-state").dataset.state = state.state;
  const { good, skipped } = state.answers;
  const bad = state.answers.bad + state.answers["known-bad"];
  $("learn-count").textContent = `${state.seen} photos seen; answered: ${good} OK, ${bad} NG, ${skipped} skipped`;
  $("learn-reason").textContent = state.reason;
  $("learn-drift").hidden = !state.drift.length;
  $("learn-drift").textContent = state.drift.join("; ");
  const limits = (of) => (of.limits ? `${figure(of.limits.good)} to ${figure(of.limits.anomalous)}` : "none");
  const rows = [["threshold", figure(now.threshold), next && figure(next.threshold)], ["unsure", limits(now), next && limits(next)]];
  for (const [key, name] of [["false_alarms", "false alarms"], ["missed", "missed defects"], ["balanced", "mean of both"]]) {
    rows.push([name, now.expected ? between(now.expected[key]) : "unknown", next && between(next.expected[key])]);
  }
  $("learn-rates").replaceChildren(...rows.map(([name, before, after]) => {
    const row = element("tr");
    element("th", { scope: "row" }, name, row);
    element("td", {}, before, row);
    element("td", {}, after || "–", row);
    return row;
  }));
  const known = state.width === null ? 0 : Math.min(1, state.wanted_width / state.width);
  $("learn-meter").value = known;
  const width = state.width === null ? "not known yet" : `known to ${(100 * state.width).toFixed(0)} points`;
  $("learn-width").textContent = `Error ${width}; trusted at ${(100 * state.wanted_width).toFixed(0)}`;
  const same = next && state.state !== "proposed" && !state.joining && figure(next.threshold) === figure(now.threshold);
  $("learn-accept").disabled = !next || same;
  $("learn-accept").textContent = state.state === "proposed" ? "Accept and trust" : "Accept";
  $("learn-bank").textContent = state.bank_stays ? `Good ones do not join the bank: ${state.bank_stays}.` : "Good ones join the bank when you accept: scores fall, and thresholds are found anew.";
}

function showChanges() {
  const { changes } = learn.state;
  $("learn-changes-title").textContent = `Verdicts that would change: ${changes.length}`;
  const old = new Map([...$("learn-changes").children].map((item) => [item.dataset.uid, item]));
  $("learn-changes").replaceChildren(...changes.map((photo) => {
    const item = old.get(photo.uid) || newChange(photo);
    item.lastElementChild.textContent = `${WORDS[photo.now]} → ${WORDS[photo.proposed]}`;
    return item;
  }));
}

function newChange(photo) {
  const item = element("li");
  item.dataset.uid = photo.uid;
  const image = element("img", { alt: photo.photo || "a photo of the stream" }, null, item);
  element("span", {}, "", item);
  pictureOf(photo.uid, "overlay").then((url) => { if (url) image.src = url; });
  return item;
}

function answer(said) {
  const { photo } = learn;
  if (!photo) return;
  attempt(async () => {
    const state = await post(learnUrl("answers"), { uid: photo.uid, answer: said });
    learn.back.push(photo);
    show(state);
    learnSays(`${photo.photo || photo.uid.slice(0, 8)}: ${SAID[said]}`);
  });
}

function knownBad(files) { // photos of defects from elsewhere: judged like any other, but no sample of the line
  attempt(async () => {
    let state = null;
    for (const file of files) {
      const form = new FormData();
      form.append("photo", file, file.name);
      form.append("full", "true"); // a settled score is a bound
      form.append("class", learn.state.class);
      form.append("bundle", learn.state.bundle);
      const verdict = await json("/inspect", { method: "POST", body: form });
      state = await post(learnUrl("answers"), { uid: verdict.uid, answer: "known-bad" });
    }
    if (state) show(state);
    learnSays(`${files.length} known defect${files.length === 1 ? "" : "s"} taken as evidence`);
  });
}

function undo() {
  const photo = learn.back.at(-1);
  if (!photo) return;
  attempt(async () => {
    const state = await post(learnUrl("answers"), { uid: photo.uid, answer: null });
    learn.back.pop();
    show(state, photo);
    learnSays(`${photo.photo || photo.uid.slice(0, 8)}: taken back`);
  });
}

function accept() {
  attempt(async () => {
    $("learn-busy").hidden = false;
    $("learn-accept").disabled = true;
    try {
      const done = await post(learnUrl("accept"), { bundle_id: learn.state.bundle_id });
      const joined = done.joined ? `, a bank of ${done.joined} photos` : "";
      learn.back = [];
      await loadBundlesFor(learn.state.class);
      show(await json(learnUrl("commissioning")));
      await showVersions();
      learnSays(`live: threshold ${figure(done.thresholds.before)} → ${figure(done.thresholds.after)}${joined}, in ${done.seconds.toFixed(0)} s`);
    } finally {
      $("learn-busy").hidden = true;
      showRates();
    }
  });
}

async function loadBundlesFor(name) {
  const bundle = $("bundle").value;
  await loadBundles();
  if (bundle) $("bundle").value = bundle;
  showClasses();
  $("class").value = name;
}

async function showVersions() {
  const bundle = learn.state.bundle;
  const told = await json(`/bundles/${encodeURIComponent(bundle)}/versions`);
  $("learn-versions").replaceChildren(...told.versions.map((version) => {
    const item = element("li");
    element("span", {}, `${new Date(version.created).toLocaleString()}: ${version.change || "as it was exported"}`, item);
    if (version.current) element("b", {}, "in use", item);
    else element("button", { type: "button", "aria-label": `Back to ${version.bundle_id}` }, "Back to this", item)
      .addEventListener("click", () => goBack(bundle, version.bundle_id));
    return item;
  }));
}

function goBack(bundle, ident) {
  attempt(async () => {
    await post(`/bundles/${encodeURIComponent(bundle)}/restore`, { bundle_id: ident });
    learn.back = [];
    await loadBundlesFor(learn.state.class);
    if ($("class").value !== learn.state.class) { // it was not there yet
      $("learn").close();
      return;
    }
    show(await json(learnUrl("commissioning")));
    await showVersions();
    learnSays(`back: the bundle is ${ident} again`);
  });
}

async function openLearn() {
  Object.assign(learn, { state: null, photo: null, back: [] });
  learnSays("");
  $("learn").showModal();
  $("learn-stage").focus();
  await lookAgain();
  if (learn.state) await attempt(showVersions);
}

$("learn-open").addEventListener("click", openLearn);
$("learn-close").addEventListener("click", () => $("learn").close());
$("learn-good").addEventListener("click", () => answer("good"));
$("learn-bad").addEventListener("click", () => answer("bad"));
$("learn-skip").addEventListener("click", () => answer("skip"));
$("learn-undo").addEventListener("click", undo);
$("learn-known").addEventListener("change", (event) => { knownBad([...event.target.files]); event.target.value = ""; });
$("learn-accept").addEventListener("click", accept);
$("learn").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const toggle = () => { learn.heat = !learn.heat; showAsked(learn.photo); };
  const actions = { o: () => answer("good"), n: () => answer("bad"), s: () => answer("skip"), u: undo, h: toggle, a: () => $("learn-accept").focus() };
  const action = actions[event.key.toLowerCase()];
  if (action) {
    event.preventDefault();
    action();
  }
});
