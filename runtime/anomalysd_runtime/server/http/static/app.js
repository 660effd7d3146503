"use strict";
// The page of the box. It speaks to this host alone, and whatever came from outside is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const KEEP = 300;
const state = {
  verdicts: [], bundles: [], selected: null, view: "overlay", heat: 70, wipe: 50,
  trial: {}, // class -> threshold that is being tried here
  pictures: new Map(), busy: 0, token: sessionStorage.getItem("token") || "",
};
const WORDS = { good: "OK", anomalous: "NG", uncertain: "UNSURE", unknown: "?" };

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}), "X-Client": "page" };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    if (!$("login").open) $("login").showModal();
    throw new Error("a token is needed");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `the box answered ${answer.status}`);
  }
  return answer;
}
const json = async (path, options) => (await call(path, options)).json();

function element(name, attributes = {}, text = null, parent = null) {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function problem(sentence) {
  $("problem").hidden = !sentence;
  $("problem").textContent = sentence || "";
}

// ---- photos in -------------------------------------------------------------------------------------------------

async function inspect(files) {
  problem("");
  const photos = [...files];
  state.busy += photos.length;
  showBusy();
  // Four at a time: the box judges them together, and other clients keep their turns.
  const next = async () => {
    for (let file = photos.shift(); file; file = photos.shift()) {
      const form = new FormData();
      form.append("photo", file, file.name);
      form.append("full", "true");  // whoever drops a photo here looks at it
      if ($("class").value) form.append("class", $("class").value);
      if ($("bundle").value) form.append("bundle", $("bundle").value);
      try {
        const told = await json("/inspect", { method: "POST", body: form });
        merge([told]);
        select(told.uid);
      } catch (error) {
        problem(`${file.name}: ${error.message}`);
      }
      state.busy -= 1;
      showBusy();
    }
  };
  await Promise.all([next(), next(), next(), next()]);
}

function showBusy() {
  $("progress").hidden = state.busy === 0;
}

// ---- what is known ---------------------------------------------------------------------------------------------

function merge(found) {
  const known = new Map(state.verdicts.map((v) => [v.uid, v]));
  for (const verdict of found) known.set(verdict.uid, verdict);
  state.verdicts = [...known.values()].sort((a, b) => b.at - a.at).slice(0, KEEP);
  for (const uid of state.pictures.keys()) if (!known.has(uid)) forget(uid);
  showAll();
}

function forget(uid) {
  for (const url of Object.values(state.pictures.get(uid) || {})) if (typeof url === "string") URL.revokeObjectURL(url);
  state.pictures.delete(uid);
}

async function pictureOf(uid, kind) {
  const known = state.pictures.get(uid) || {};
  state.pictures.set(uid, known);
  if (!known[kind]) {
    known[kind] = call(`/verdicts/${uid}/pictures/${kind}`).then((a) => a.blob()).then((blob) => {
      known[kind] = URL.createObjectURL(blob);
      return known[kind];
    }).catch(() => "");
  }
  return known[kind];
}

async function poll() {
  try {
    const limit = state.verdicts.length ? 20 : KEEP;
    const health = await json("/health");
    $("health").dataset.state = health.status;
    const waiting = health.waiting ? `, ${health.waiting} waiting` : "";
    $("health").lastElementChild.textContent = health.reasons.length ? `${health.status}: ${health.reasons[0]}` : health.status + waiting;
    if (!state.bundles.length && health.ready) await loadBundles();
    const told = await json(`/verdicts?limit=${limit}`);
    $("source").textContent = told.recorded ? "from the record" : "in memory only";
    const known = new Map(state.verdicts.map((v) => [v.uid, v.correction]));
    if (known.size && told.verdicts.length === limit && !told.verdicts.some((v) => known.has(v.uid))) {
      told.verdicts = (await json(`/verdicts?limit=${KEEP}`)).verdicts; // more came than one look brings
    }
    if (told.verdicts.some((v) => !known.has(v.uid) || known.get(v.uid) !== v.correction)) {
      const following = !state.selected || state.selected === state.verdicts[0]?.uid;
      merge(told.verdicts);
      if (following && state.verdicts.length) select(state.verdicts[0].uid);
    }
  } catch (error) {
    $("health").dataset.state = "lost";
    $("health").lastElementChild.textContent = error.message.includes("fetch") ? "no answer from the box" : error.message;
  }
  setTimeout(poll, document.hidden ? 10000 : 1500);
}

async function loadBundles() {
  state.bundles = (await json("/bundles")).bundles;
  $("bundle").replaceChildren(...state.bundles.map((b) => element("option", { value: b.name }, b.name)));
  $("bundle").parentElement.hidden = state.bundles.length < 2;
  showClasses();
}

function showClasses() {
  const bundle = state.bundles.find((b) => b.name === $("bundle").value) || state.bundles[0];
  const names = bundle ? Object.keys(bundle.classes) : [];
  $("class").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  showAll();
}

// ---- the verdict -----------------------------------------------------------------------------------------------

const selected = () => state.verdicts.find((v) => v.uid === state.selected);
const hasLimits = (v) => Boolean(v.limits) && v.limits.good < v.limits.anomalous;
const judged = (v) => { // a threshold that is tried decides alone
  const limit = state.trial[v.class];
  return limit === undefined || v.threshold === null ? v.verdict : v.pred_score >= limit ? "anomalous" : "good";
};

async function select(uid) {
  state.selected = uid;
  showAll();
  const verdict = selected();
  if (!verdict) return;
  const kinds = ["photo", "repaint", "heat"];
  const urls = await Promise.all(kinds.map((kind) => pictureOf(uid, kind)));
  if (state.selected !== uid) return;
  $("viewer").hidden = !urls[0];
  kinds.forEach((kind, n) => { if (urls[n]) $(kind).src = urls[n]; });
  showView();
}

function showVerdict() {
  const verdict = selected();
  $("judge").hidden = !verdict;
  if (!verdict) return;
  const box = $("verdict");
  box.dataset.verdict = verdict.verdict;
  $("word").textContent = WORDS[verdict.verdict];
  const limit = verdict.threshold === null ? "no threshold" : `threshold ${verdict.threshold.toFixed(3)}`;
  $("score").textContent = `score ${verdict.pred_score.toFixed(3)} · ${limit}`;
  const between = hasLimits(verdict) ? [`unsure ${verdict.limits.good.toFixed(3)} to ${verdict.limits.anomalous.toFixed(3)}`] : [];
  const sure = verdict.pred_probability === null ? [] : [`${(100 * verdict.pred_probability).toFixed(0)} % defective`];
  $("sure").textContent = [...sure, ...between].join(" · ");
  const took = (verdict.timings_ms.waited_ms || 0) + (verdict.timings_ms.group_ms || 0);
  const names = { guided: "guided mask", prototypes: "prototypes", photo: "the whole photo" };
  const where = names[verdict.evidence.kind] || `grid ${verdict.evidence.scale}`;
  const when = new Date(verdict.at * 1000).toLocaleTimeString();
  const name = verdict.photo || verdict.photo_sha256.slice(0, 8);
  $("about").textContent = `${verdict.class} · ${name} · ${when} · ${took.toFixed(0)} ms · ${where}`;
  $("say-ok").setAttribute("aria-pressed", verdict.correction === "ok");
  $("say-ng").setAttribute("aria-pressed", verdict.correction === "ng");
}

function showView() {
  const verdict = selected();
  if (!verdict) return;
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === state.view);
  const wiping = state.view === "repaint";
  $("slider").value = wiping ? state.wipe : state.heat;
  $("slider-name").textContent = wiping ? "Photo | repaint" : "Heat";
  $("slider-label").style.visibility = ["overlay", "repaint"].includes(state.view) ? "visible" : "hidden";
  $("photo").style.opacity = state.view === "map" ? 0 : 1;
  $("heat").style.opacity = state.view === "overlay" ? state.heat / 100 : state.view === "map" ? 1 : 0;
  $("repaint").style.opacity = wiping ? 1 : 0;
  $("repaint").style.clipPath = `inset(0 0 0 ${state.wipe}%)`;
  $("split").hidden = !wiping;
  $("split").style.left = `${state.wipe}%`;
  // The pictures are squares of the map's size, stretched to the photo's shape, and the boxes with them.
  $("frame").style.setProperty("--shape", verdict.width_px / verdict.height_px);
  const boxes = $("boxes");
  boxes.replaceChildren();
  if (state.view === "overlay" || state.view === "photo") {
    for (const region of verdict.regions.slice(0, 12)) {
      const [x0, y0, x1, y1] = region.box_px;
      const size = { x: x0 / verdict.width_px, y: y0 / verdict.height_px, width: (x1 - x0) / verdict.width_px, height: (y1 - y0) / verdict.height_px };
      element("svg:rect", size, null, boxes);
    }
  }
}

async function say(word) {
  const verdict = selected();
  if (!verdict) return;
  const correction = verdict.correction === word ? null : word;
  try {
    const body = JSON.stringify({ correction });
    const told = await json(`/verdicts/${verdict.uid}/correction`, { method: "POST", body, headers: { "Content-Type": "application/json" } });
    merge([told]);
  } catch (error) {
    problem(error.message);
  }
}

// ---- lists and figures -----------------------------------------------------------------------------------------

function showList() {
  const list = $("list");
  const old = new Map([...list.children].map((item) => [item.dataset.uid, item]));
  const items = state.verdicts.slice(0, 60).map((verdict) => {
    const item = old.get(verdict.uid) || newItem(verdict);
    const button = item.firstElementChild;
    button.dataset.verdict = verdict.verdict;
    button.setAttribute("aria-current", verdict.uid === state.selected);
    const said = verdict.correction ? ` → ${verdict.correction.toUpperCase()}` : "";
    const trial = judged(verdict) !== verdict.verdict ? ` (${WORDS[judged(verdict)]} at the trial)` : "";
    button.querySelector("b").textContent = `${WORDS[verdict.verdict]}${said}${trial}`;
    return item;
  });
  if (items.length !== list.children.length || items.some((item, n) => item !== list.children[n])) list.replaceChildren(...items);
}

function newItem(verdict) {
  const item = element("li");
  item.dataset.uid = verdict.uid;
  const button = element("button", { type: "button" }, null, item);
  const image = element("img", { alt: "" }, null, button);
  element("b", {}, "", button);
  element("small", {}, `${verdict.pred_score.toFixed(3)} · ${verdict.class}`, button);
  button.addEventListener("click", () => select(verdict.uid));
  pictureOf(verdict.uid, "photo").then((url) => { if (url) image.src = url; });
  return item;
}

const quantile = (values, q) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : NaN;
};

function showTable() {
  const classes = [...new Set(state.verdicts.map((v) => v.class))].sort();
  $("table").replaceChildren(...classes.map((name) => {
    const mine = state.verdicts.filter((v) => v.class === name);
    const ng = mine.filter((v) => v.verdict === "anomalous").length;
    const ok = mine.filter((v) => v.verdict === "good").length;
    const row = element("tr");
    element("td", {}, name, row);
    element("td", {}, ok, row);
    element("td", {}, ng, row);
    element("td", {}, mine.filter((v) => v.verdict === "uncertain").length, row);
    element("td", {}, (100 * ng / mine.length).toFixed(0), row);
    element("td", {}, null, row).append(trend(mine.slice(0, 60).reverse()));
    const took = mine.map((v) => (v.timings_ms.waited_ms || 0) + (v.timings_ms.group_ms || 0));
    element("td", {}, quantile(took, 0.5).toFixed(0), row);
    element("td", {}, quantile(took, 0.95).toFixed(0), row);
    return row;
  }));
}

function trend(verdicts) {
  const limit = verdicts[0].threshold;
  const shown = [...verdicts.map((v) => v.pred_score), ...(limit === null ? [] : [limit])];
  const [low, high] = [Math.min(...shown), Math.max(...shown)];
  const y = (value) => 24 - 22 * (value - low) / (high - low || 1);
  const drawing = element("svg:svg", { viewBox: "0 0 110 26", role: "img", "aria-label": "Trend of the scores" });
  if (limit !== null) element("svg:line", { x1: 0, x2: 110, y1: y(limit), y2: y(limit) }, null, drawing);
  const step = 110 / Math.max(1, verdicts.length - 1);
  element("svg:polyline", { points: verdicts.map((v, n) => `${n * step},${y(v.pred_score)}`).join(" ") }, null, drawing);
  return drawing;
}

// ---- the threshold ---------------------------------------------------------------------------------------------

const plot = { low: 0, high: 1, name: null, width: 600 };

function showThreshold() {
  const name = selected()?.class || $("class").value;
  const mine = state.verdicts.filter((v) => v.class === name);
  const drawing = $("plot");
  drawing.replaceChildren();
  $("threshold-class").textContent = name || "";
  const own = mine[0]?.threshold ?? null;
  const limits = mine.length && hasLimits(mine[0]) ? [mine[0].limits.good, mine[0].limits.anomalous] : [];
  if (!mine.length || own === null) {
    $("effect").textContent = mine.length ? "This class has no threshold: it was set up without good photos." : "No verdicts of this class yet.";
    $("trial").textContent = "";
    plot.name = null;
    return;
  }
  const limit = state.trial[name] ?? own;
  const scores = mine.map((v) => v.pred_score);
  const shown = [...scores, own, ...limits];
  const span = Math.max(...shown) - Math.min(...shown) || 1;
  const width = Math.max(240, drawing.clientWidth); // drawn in the page's own pixels, so that a phone can read it
  drawing.setAttribute("viewBox", `0 0 ${width} 170`);
  Object.assign(plot, { name, width, low: Math.min(...shown) - 0.12 * span, high: Math.max(...shown) + 0.12 * span });
  const x = (value) => 10 + (width - 20) * (value - plot.low) / (plot.high - plot.low);
  if (limits.length) {
    element("svg:rect", { class: "between", x: x(limits[0]), width: x(limits[1]) - x(limits[0]), y: 14, height: 126 }, null, drawing);
  }
  element("svg:line", { class: "axis", x1: 10, x2: width - 10, y1: 140, y2: 140 }, null, drawing);
  const [low, high] = name in state.trial ? [limit, limit] : limits.length ? limits : [own, own];
  const columns = new Map(); // dots are stacked, so that every part stays visible
  for (const verdict of [...mine].reverse()) {
    const column = Math.round(x(verdict.pred_score) / 9);
    const level = columns.get(column) || 0;
    columns.set(column, level + 1);
    const kind = verdict.pred_score >= high ? "ng" : verdict.pred_score < low ? "ok" : "unsure";
    const said = verdict.correction ? " said" : "";
    const dot = element("svg:circle", { class: kind + said, cx: column * 9, cy: Math.max(22, 133 - level * 9), r: 4.5 }, null, drawing);
    element("svg:title", {}, `${verdict.photo} ${verdict.pred_score.toFixed(3)}${verdict.correction ? `, said ${verdict.correction}` : ""}`, dot);
  }
  element("svg:line", { class: "bundle", x1: x(own), x2: x(own), y1: 14, y2: 146 }, null, drawing);
  for (const end of limits) element("svg:line", { class: "limit", x1: x(end), x2: x(end), y1: 14, y2: 146 }, null, drawing);
  element("svg:line", { class: "try", x1: x(limit), x2: x(limit), y1: 14, y2: 146 }, null, drawing);
  element("svg:circle", { class: "grip", cx: x(limit), cy: 14, r: 9 }, null, drawing);
  element("svg:text", { x: 10, y: 163 }, plot.low.toFixed(2), drawing);
  element("svg:text", { x: width - 10, y: 163, "text-anchor": "end" }, plot.high.toFixed(2), drawing);
  element("svg:text", { x: Math.min(width - 75, Math.max(75, x(limit))), y: 163, "text-anchor": "middle" }, limit.toFixed(3), drawing);
  for (const [key, value] of Object.entries({ min: plot.low, max: plot.high, now: limit })) drawing.setAttribute(`aria-value${key}`, value.toFixed(4));
  const ng = mine.filter((v) => v.pred_score >= limit).length;
  const now = mine.filter((v) => v.pred_score >= own).length;
  const missed = mine.filter((v) => v.correction === "ng" && v.pred_score < limit).length;
  const alarms = mine.filter((v) => v.correction === "ok" && v.pred_score >= limit).length;
  const said = mine.filter((v) => v.correction).length;
  const by = said ? `; of ${said} that an operator judged, ${missed} missed, ${alarms} false alarm${alarms === 1 ? "" : "s"}` : "";
  const unsure = mine.filter((v) => v.verdict === "uncertain").length;
  const asked = limits.length ? ` Unsure from ${limits[0].toFixed(3)} to ${limits[1].toFixed(3)}: ${unsure}.` : "";
  $("effect").textContent = `At ${limit.toFixed(3)}: ${mine.length - ng} OK, ${ng} NG of the last ${mine.length} (now ${now} NG)${by}.${asked}`;
  $("trial").textContent = limit === own ? "the bundle's own threshold" : "a trial on this page only; verdicts go on by the bundle's (dashed)";
}

function tryThreshold(value) {
  if (plot.name === null) return;
  state.trial[plot.name] = Math.min(plot.high, Math.max(plot.low, value));
  showThreshold();
  showList();
}

function dragTo(event) {
  const frame = $("plot").getBoundingClientRect();
  const at = (event.clientX - frame.left) / frame.width * plot.width;
  tryThreshold(plot.low + (at - 10) / (plot.width - 20) * (plot.high - plot.low));
}

function showAll() {
  showVerdict();
  showList();
  showTable();
  showThreshold();
  showView();
}

// ---- hands -----------------------------------------------------------------------------------------------------

function move(step) {
  const at = state.verdicts.findIndex((v) => v.uid === state.selected);
  const next = state.verdicts[Math.min(state.verdicts.length - 1, Math.max(0, at + step))];
  if (next) {
    select(next.uid);
    document.querySelector(`[data-uid="${next.uid}"]`)?.scrollIntoView({ block: "nearest" });
  }
}

function slide(value) {
  if (state.view === "repaint") state.wipe = value; else state.heat = value;
  showView();
}

function view(name) {
  state.view = name;
  showView();
}

$("pick").addEventListener("change", (event) => { inspect(event.target.files); event.target.value = ""; });
$("drop").addEventListener("keydown", (event) => { if (["Enter", " "].includes(event.key)) { event.preventDefault(); $("pick").click(); } });
for (const name of ["dragover", "dragenter"]) document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files.length) inspect(event.dataTransfer.files); });
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) inspect(event.clipboardData.files); });
$("bundle").addEventListener("change", showClasses);
$("class").addEventListener("change", showThreshold);
$("slider").addEventListener("input", (event) => slide(Number(event.target.value)));
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => view(button.dataset.view));
$("say-ok").addEventListener("click", () => say("ok"));
$("say-ng").addEventListener("click", () => say("ng"));
$("help-open").addEventListener("click", () => $("help").showModal());
$("reset").addEventListener("click", () => { delete state.trial[plot.name]; showAll(); });
$("plot").addEventListener("pointerdown", (event) => { $("plot").setPointerCapture(event.pointerId); dragTo(event); });
$("plot").addEventListener("pointermove", (event) => { if (event.buttons) dragTo(event); });
$("plot").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
  if (!step || plot.name === null) return;
  event.preventDefault();
  event.stopPropagation();
  tryThreshold(Number($("plot").getAttribute("aria-valuenow")) + step * (plot.high - plot.low) / 100);
});
$("login-form").addEventListener("submit", () => {
  state.token = $("token").value;
  sessionStorage.setItem("token", state.token);
  $("token").value = "";
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input[type=password], select, dialog")) return;
  const actions = {
    p: () => $("pick").click(), o: () => say("ok"), n: () => say("ng"), "?": () => $("help").showModal(),
    ArrowLeft: () => move(-1), ArrowRight: () => move(1), j: () => move(1), k: () => move(-1),
    1: () => view("overlay"), 2: () => view("photo"), 3: () => view("map"), 4: () => view("repaint"),
    "+": () => slide(Math.min(100, Number($("slider").value) + 10)), "-": () => slide(Math.max(0, Number($("slider").value) - 10)),
    t: () => $("plot").focus(), l: () => $("learn-open").click(),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action && !(event.target.id === "slider" && event.key.startsWith("Arrow"))) {
    event.preventDefault();
    action();
  }
});
addEventListener("resize", showThreshold);
poll();
