// The page of the service: sends a photograph, draws what came back. No framework, no other place is asked.
"use strict";

const at = (id) => document.getElementById(id);
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const LANDING = "landing-zones";

let classes = [];
let shown = null; // { ids, width, height, answer, name, photo }
let request = null;
let photoUrl = "";
let maskUrl = "";

async function begin() {
  classes = await (await fetch("/ui/classes.json")).json();
  const status = await (await fetch("/")).json();
  at("model").textContent = status.ready ? `model ${status.model_id}` : "the model is not ready yet";
  at("file").addEventListener("change", (event) => event.target.files[0] && send(event.target.files[0]));
  at("opacity").addEventListener("input", draw);
  at("save-overlay").addEventListener("click", saveOverlay);
  at("key-form").addEventListener("submit", useKey);
  at("stage").addEventListener("pointermove", tellClass);
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, dragged);
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && send(event.clipboardData.files[0]));
}

function dragged(event) {
  event.preventDefault();
  at("drop").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop" && event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
}

function useKey(event) {
  event.preventDefault();
  at("key-form").hidden = true;
  if (at("file").files[0]) send(at("file").files[0]);
}

function send(file) {
  if (request) request.abort();
  const body = new FormData();
  body.append("data", file);
  request = new XMLHttpRequest();
  request.open("POST", "/predict");
  request.setRequestHeader("Accept", "application/json");
  if (at("key").value) request.setRequestHeader("X-API-Key", at("key").value);
  request.upload.onprogress = (event) => {
    at("progress").value = event.loaded / event.total;
    say(`Sending ${file.name}`);
  };
  request.upload.onload = () => {
    at("progress").removeAttribute("value");
    say("Sent. The model is looking at it");
  };
  request.onload = () => answered(file, request.status, request.responseText, request.getResponseHeader("Retry-After"));
  request.onerror = () => fail("The service did not answer. Is it still running?");
  at("error").textContent = "";
  at("working").hidden = false;
  at("progress").value = 0;
  request.send(body);
}

async function answered(file, status, text, retryAfter) {
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    return fail(`The answer cannot be read (status ${status}).`);
  }
  if (status === 401) at("key-form").hidden = false;
  if (status === 429) return fail(`The service is busy. Try again in ${retryAfter} s.`);
  if (status !== 200) return fail(`${file.name}: ${answer.error ? answer.error.message : `status ${status}`}`);
  await show(file, answer);
  at("working").hidden = true;
  say(`Done: ${file.name}`);
  return undefined;
}

function say(text) {
  at("status").textContent = text;
}

function fail(text) {
  at("working").hidden = true;
  at("result").hidden = true; // of another photograph
  document.body.classList.remove("answered");
  say("");
  at("error").textContent = text;
}

async function show(file, answer) {
  const bytes = Uint8Array.from(atob(answer.segmentation_mask), (letter) => letter.charCodeAt(0));
  const mask = new Blob([bytes], { type: "image/png" });
  for (const url of [photoUrl, maskUrl]) if (url) URL.revokeObjectURL(url);
  [photoUrl, maskUrl] = [URL.createObjectURL(file), URL.createObjectURL(mask)];
  const [height, width] = answer.prediction_shape;
  const name = file.name.replace(/\.[^.]*$/, "") || "photograph";
  shown = { ids: idsOf(await createImageBitmap(mask), width, height), width, height, answer, name };
  at("photo").src = photoUrl;
  // some formats are read by the service and not by the browser; the classes are shown without the photograph then
  shown.photo = await at("photo").decode().then(() => true, () => false);
  at("stage").classList.toggle("no-photo", !shown.photo);
  document.body.classList.add("answered");
  at("result").hidden = false;
  at("save-mask").href = maskUrl;
  at("save-mask").download = `${name}.png`;
  list(answer);
  draw();
}

function idsOf(bitmap, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const idOf = new Map(classes.map(({ id, colour: [r, g, b] }) => [(r << 16) | (g << 8) | b, id]));
  const ids = new Uint8Array(width * height);
  for (let place = 0; place < ids.length; place += 1) {
    ids[place] = idOf.get((pixels[4 * place] << 16) | (pixels[4 * place + 1] << 8) | pixels[4 * place + 2]);
  }
  return ids;
}

function list(answer) {
  at("headline").textContent = `${percent(answer.class_fractions[LANDING])} landing zone`;
  const rows = classes.map(({ id, name, colour }) => {
    const share = answer.class_fractions[name];
    const row = document.createElement("li");
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, value: id });
    box.addEventListener("change", draw);
    const swatch = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    swatch.getContext("2d").fillStyle = `rgb(${colour})`;
    swatch.getContext("2d").fillRect(0, 0, 1, 1);
    swatch.setAttribute("aria-hidden", "true");
    const value = Object.assign(document.createElement("span"), { className: "share", textContent: percent(share) });
    label.append(box, swatch, name.replace("-", " "), value);
    row.classList.toggle("none", share === 0);
    row.append(label);
    return row;
  });
  at("classes").replaceChildren(...rows);
  const seconds = Object.values(answer.timings_s).reduce((sum, part) => sum + part, 0);
  const facts = {
    "Confidence": percent(answer.confidence),
    "Size": `${shown.width} × ${shown.height}`,
    "Time": `${Math.round(1000 * seconds)} ms, network ${Math.round(1000 * answer.timings_s.network)}`,
    "Model": answer.model_id,
  };
  const parts = Object.entries(facts).flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]);
  at("facts").replaceChildren(...parts);
}

function draw() {
  if (!shown) return;
  const alpha = shown.photo ? Math.round((255 * at("opacity").value) / 100) : 255;
  const visible = new Set([...at("classes").querySelectorAll("input:checked")].map((box) => Number(box.value)));
  // little-endian RGBA, as every browser's processor has it
  const tints = new Uint32Array(256);
  for (const { id, colour: [r, g, b] } of classes) {
    if (visible.has(id)) tints[id] = ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
  }
  const canvas = Object.assign(at("overlay"), { width: shown.width, height: shown.height });
  const picture = new ImageData(shown.width, shown.height);
  const target = new Uint32Array(picture.data.buffer);
  for (let place = 0; place < target.length; place += 1) target[place] = tints[shown.ids[place]];
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function tellClass(event) {
  if (!shown) return;
  const box = at("overlay").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * shown.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * shown.height);
  const entry = classes[shown.ids[y * shown.width + x]];
  if (entry) at("under").textContent = `x ${x}, y ${y}: ${entry.name.replace("-", " ")}`;
}

function saveOverlay() {
  const canvas = new OffscreenCanvas(shown.width, shown.height);
  const context = canvas.getContext("2d");
  if (shown.photo) context.drawImage(at("photo"), 0, 0, shown.width, shown.height);
  context.drawImage(at("overlay"), 0, 0);
  canvas.convertToBlob({ type: "image/png" }).then((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${shown.name}_overlay.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

begin().catch(() => fail("The service did not answer. Is it still running?"));
