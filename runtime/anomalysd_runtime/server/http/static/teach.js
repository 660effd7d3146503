"use strict";
// A new class from good photos: chosen, sent, live; and back. Uses app.js (call, json, element, $).

const lesson = { photos: [], back: null };
const MOST = 20; // as the box takes

function showLesson() {
  const count = lesson.photos.length;
  $("teach-photos").replaceChildren(...lesson.photos.map((file, n) => {
    const item = element("li");
    element("span", {}, file.name, item);
    const out = element("button", { type: "button", "aria-label": `Leave ${file.name} out` }, "×", item);
    out.addEventListener("click", () => { lesson.photos.splice(n, 1); showLesson(); });
    return item;
  }));
  $("teach-count").textContent = count > MOST ? `${count} photos; at most ${MOST} are taken` : `${count} photo${count === 1 ? "" : "s"}`;
  $("teach-go").disabled = count < 1 || count > MOST;
}

function addPhotos(files) {
  lesson.photos.push(...files);
  showLesson();
}

function lessonSays(sentences, kind = "") {
  $("teach-said").replaceChildren(...sentences.map((sentence) => element("li", kind ? { class: kind } : {}, sentence)));
}

function showPreview(photos) {
  $("teach-preview").replaceChildren(...photos.map((photo) => {
    const item = element("li");
    element("img", { src: `data:image/png;base64,${photo.png}`, alt: `${photo.photo}, as the others judge it` }, null, item);
    element("small", {}, `${photo.score.toFixed(3)} · ${photo.photo}`, item);
    return item;
  }));
}

async function sendLesson() {
  const form = new FormData();
  form.append("class", $("teach-name").value.trim());
  if ($("teach-noun").value.trim()) form.append("noun", $("teach-noun").value.trim());
  if ($("bundle").value) form.append("bundle", $("bundle").value);
  for (const file of lesson.photos) form.append("photo", file, file.name);
  $("teach-go").disabled = true;
  $("teach-busy").hidden = false;
  $("teach-back").hidden = $("teach-learn").hidden = true;
  lessonSays([]);
  showPreview([]);
  try {
    const told = await json("/classes", { method: "POST", body: form });
    const [preset] = Object.keys(told.thresholds);
    const [limits, expected] = [told.limits[preset], told.expected[preset]];
    const between = limits ? `, unsure from ${limits.good.toFixed(3)} to ${limits.anomalous.toFixed(3)}` : "";
    const rates = expected ? `; expected: ${(100 * expected.false_alarms).toFixed(0)} % false alarms, ${(100 * expected.missed).toFixed(0)} % missed` : "";
    const live = `${told.class} is live, taught from ${told.shots} photo${told.shots === 1 ? "" : "s"} in ${told.seconds.toFixed(0)} s`;
    const threshold = told.thresholds[preset];
    const figures = threshold === null ? "no threshold" : `threshold ${threshold.toFixed(3)}${between}${rates}`;
    lessonSays([live, figures, ...told.findings.map((finding) => finding.sentence), ...told.notes]);
    showPreview(told.preview);
    lesson.back = { bundle: told.bundle, id: told.before_id };
    lesson.photos = [];
    $("teach-back").hidden = $("teach-learn").hidden = false;
    await loadBundles();
    $("class").value = told.class;
    showThreshold();
    $("teach-said").scrollIntoView({ block: "start" });
  } catch (error) {
    lessonSays([error.message], "fault");
  }
  $("teach-busy").hidden = true;
  showLesson();
}

async function takeBack() {
  const { bundle, id } = lesson.back;
  const body = JSON.stringify({ bundle_id: id });
  try {
    await call(`/bundles/${encodeURIComponent(bundle)}/restore`, { method: "POST", body, headers: { "Content-Type": "application/json" } });
    lessonSays([`taken back: the bundle is ${id} again`]);
    $("teach-back").hidden = $("teach-learn").hidden = true;
    showPreview([]);
    await loadBundles();
  } catch (error) {
    lessonSays([error.message], "fault");
  }
}

$("teach-open").addEventListener("click", () => { showLesson(); $("teach").showModal(); });
$("teach-close").addEventListener("click", () => $("teach").close());
for (const name of ["teach-pick", "teach-camera"]) {
  $(name).addEventListener("change", (event) => { addPhotos(event.target.files); event.target.value = ""; });
}
$("teach").addEventListener("drop", (event) => {
  event.preventDefault();
  event.stopPropagation(); // the page behind would judge them
  $("drop").classList.remove("over");
  addPhotos(event.dataTransfer.files);
});
$("teach-form").addEventListener("submit", (event) => { event.preventDefault(); sendLesson(); });
$("teach-back").addEventListener("click", takeBack);
$("teach-learn").addEventListener("click", () => { $("teach").close(); openLearn(); });
