// The page of the service: sends a photograph, draws what came back. No framework, no other place is asked.
"use strict";

const at = (id) => document.getElementById(id);
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const LANDING = "landing-zones";

let classes = [];
let shown = null; // what `prepare` made
let request = null; // of the photograph that was chosen last; what comes of an earlier one is left alone
let chosen = null;
let drawing = 0;

function begin() {
  at("file").addEventListener("change", (event) => {
    const file = event.target.files[0];
    event.target.value = ""; // or choosing the same one again would say nothing
    if (file) send(file);
  });
  at("opacity").addEventListener("input", drawSoon);
  at("save-overlay").addEventListener("click", saveOverlay);
  at("key-form").addEventListener("submit", useKey);
  at("stage").addEventListener("pointermove", tellClass);
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, dragged);
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && send(event.clipboardData.files[0]));
}

async function learn() {
  classes = await (await fetch("/ui/classes.json")).json();
  const status = await (await fetch("/")).json();
  at("model").textContent = status.ready ? `model ${status.model_id}` : "the model is not ready yet";
}

function dragged(event) {
  event.preventDefault();
  at("drop").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop" && event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
}

function useKey(event) {
  event.preventDefault();
  at("key-form").hidden = true;
  if (chosen) send(chosen);
}

function send(file) {
  if (request) request.abort();
  chosen = file;
  const body = new FormData();
  body.append("data", file);
  const own = new XMLHttpRequest();
  request = own;
  own.open("POST", "/predict");
  own.setRequestHeader("Accept", "application/json");
  try {
    if (at("key").value) own.setRequestHeader("X-API-Key", at("key").value);
  } catch {
    return fail("A key has only plain letters, digits and signs.");
  }
  own.upload.onprogress = (event) => {
    at("progress").value = event.loaded / event.total;
    say(`Sending ${file.name}`);
  };
  own.upload.onload = () => {
    at("progress").removeAttribute("value");
    say("Sent. The model is looking at it");
  };
  own.onload = () => answered(own, file).catch(() => own === request && fail(`${file.name}: the answer cannot be shown.`));
  own.onerror = () => fail("The service did not answer. Is it still running?");
  at("error").textContent = "";
  at("working").hidden = false;
  at("progress").value = 0;
  own.send(body);
  return undefined;
}

async function answered(own, file) {
  const answer = JSON.parse(own.responseText);
  if (own.status === 401) {
    at("key-form").hidden = false;
    return fail(at("key").value ? "The key is wrong." : "This service asks for a key. Enter it above.");
  }
  if (own.status === 429) return fail(`The service is busy. Try again in ${own.getResponseHeader("Retry-After")} s.`);
  if (own.status !== 200) return fail(`${file.name}: ${answer.error.message}`);
  const ready = await prepare(file, answer);
  if (own !== request) return undefined; // another photograph was chosen meanwhile
  show(ready);
  at("working").hidden = true;
  return say(`Done: ${file.name}`);
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

async function prepare(file, answer) {
  await learned;
  const bytes = Uint8Array.from(atob(answer.segmentation_mask), (letter) => letter.charCodeAt(0));
  const mask = new Blob([bytes], { type: "image/png" });
  const [height, width] = answer.prediction_shape;
  const name = file.name.replace(/\.[^.]*$/, "") || "photograph";
  const ids = idsOf(await createImageBitmap(mask), width, height);
  const image = Object.assign(new Image(), { id: "photo", alt: "The photograph that was sent" });
  image.src = URL.createObjectURL(file);
  // some formats are read by the service and not by the browser; the classes are shown without the photograph then
  const photo = await image.decode().then(() => true, () => false);
  return { ids, width, height, answer, name, image, photo, mask: URL.createObjectURL(mask) };
}

function show(ready) {
  if (shown) for (const url of [shown.image.src, shown.mask]) URL.revokeObjectURL(url);
  shown = ready;
  at("photo").replaceWith(shown.image);
  at("stage").classList.toggle("no-photo", !shown.photo);
  document.body.classList.add("answered");
  at("result").hidden = false;
  at("save-mask").href = shown.mask;
  at("save-mask").download = `${shown.name}.png`;
  list(shown.answer);
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
    box.addEventListener("change", drawSoon);
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

function drawSoon() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(draw);
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

begin();
const learned = learn();
learned.catch(() => fail("The service did not answer. Is it still running?"));
