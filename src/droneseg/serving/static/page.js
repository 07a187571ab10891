// Web page of the service: sends a photo and draws the predicted mask. No framework, no requests to other hosts.
"use strict";

const at = (id) => document.getElementById(id);
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const LANDING = "landing-zones";
const SOURCES = { argument: "given", georeference: "from the georeference", laser: "from the laser rangefinder", height: "height above ground" };

let classes = [];
let shown = null; // result on display, returned by `prepare`
let request = null; // request of the latest photo; responses to earlier requests are ignored
let chosenFile = null;
let drawing = 0;

function begin() {
  at("file").addEventListener("change", (event) => {
    const file = event.target.files[0];
    event.target.value = ""; // otherwise choosing the same file again fires no event
    if (file) send(file);
  });
  at("opacity").addEventListener("input", drawSoon);
  // one length is enough; the service refuses two
  at("gsd").addEventListener("input", () => { at("height").value = ""; });
  at("height").addEventListener("input", () => { at("gsd").value = ""; });
  at("options").addEventListener("change", () => chosenFile && send(chosenFile));
  at("save-overlay").addEventListener("click", saveOverlay);
  at("key-form").addEventListener("submit", useKey);
  at("stage").addEventListener("pointermove", showClassAtPointer);
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, dragged);
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && send(event.clipboardData.files[0]));
}

async function loadStatus() {
  classes = await (await fetch("/ui/classes.json")).json();
  const status = await (await fetch("/")).json();
  at("model").textContent = status.ready ? `Model ${status.model_id}` : "The model is not ready yet.";
}

function dragged(event) {
  event.preventDefault();
  at("drop").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop" && event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
}

function useKey(event) {
  event.preventDefault();
  at("key-form").hidden = true;
  if (chosenFile) send(chosenFile);
}

function send(file) {
  if (request) request.abort();
  if (chosenFile && chosenFile !== file) at("gsd").value = at("height").value = ""; // the scale of the previous photo
  chosenFile = file;
  const body = new FormData();
  body.append("data", file);
  body.append("gsd_m", decimal(at("gsd")));
  body.append("height_m", decimal(at("height")));
  body.append("plain", at("plain").checked);
  const xhr = new XMLHttpRequest();
  request = xhr;
  xhr.open("POST", "/predict");
  xhr.setRequestHeader("Accept", "application/json");
  try {
    if (at("key").value) xhr.setRequestHeader("X-API-Key", at("key").value);
  } catch {
    return fail("The API key contains characters that cannot be sent in a header. Enter it again.");
  }
  xhr.upload.onprogress = (event) => {
    at("progress").value = event.loaded / event.total;
    setStatus(`Sending ${file.name}`);
  };
  xhr.upload.onload = () => {
    at("progress").removeAttribute("value");
    setStatus("Waiting for the prediction");
  };
  xhr.onload = () => handleResponse(xhr, file).catch(() => xhr === request && fail(`${file.name}: the response cannot be displayed. Try another photo.`));
  xhr.onerror = () => fail("The service did not respond. Check that it is running, then try again.");
  at("error").textContent = "";
  at("working").hidden = false;
  at("progress").value = 0;
  xhr.send(body);
  return undefined;
}

async function handleResponse(xhr, file) {
  const response = JSON.parse(xhr.responseText);
  if (xhr.status === 401) {
    at("key-form").hidden = false;
    return fail(at("key").value ? "The API key is wrong. Enter it again." : "This service requires an API key. Enter it above.");
  }
  if (xhr.status === 429) return fail(`The service is busy. Retry in ${xhr.getResponseHeader("Retry-After")} s.`);
  if (xhr.status !== 200) return fail(`${file.name}: ${response.error.message}`);
  const result = await prepare(file, response);
  if (xhr !== request) return undefined; // another photo was chosen in the meantime
  show(result);
  at("working").hidden = true;
  return setStatus(`Done: ${file.name}`);
}

function decimal(input) {
  return input.value.replace(",", "."); // many languages write 0,025
}

function setStatus(text) {
  at("status").textContent = text;
}

function fail(text) {
  at("working").hidden = true;
  at("result").hidden = true; // it belongs to another photo
  at("warnings").replaceChildren();
  document.body.classList.remove("has-result");
  setStatus("");
  at("error").textContent = text;
}

async function prepare(file, response) {
  await statusLoaded;
  const bytes = Uint8Array.from(atob(response.segmentation_mask), (letter) => letter.charCodeAt(0));
  const mask = new Blob([bytes], { type: "image/png" });
  const [height, width] = response.prediction_shape;
  const name = file.name.replace(/\.[^.]*$/, "") || "photo";
  const ids = idsOf(await createImageBitmap(mask), width, height);
  const image = Object.assign(new Image(), { id: "photo", alt: "Photo sent to the service" });
  image.src = URL.createObjectURL(file);
  // the service reads formats that browsers do not, such as TIFF; then the classes are shown without the photo
  const hasPhoto = await image.decode().then(() => true, () => false);
  return { ids, width, height, response, name, image, hasPhoto, mask: URL.createObjectURL(mask) };
}

function show(result) {
  if (shown) for (const url of [shown.image.src, shown.mask]) URL.revokeObjectURL(url);
  shown = result;
  at("photo").replaceWith(shown.image);
  at("stage").classList.toggle("no-photo", !shown.hasPhoto);
  document.body.classList.add("has-result");
  at("result").hidden = false;
  at("save-mask").href = shown.mask;
  at("save-mask").download = `${shown.name}.png`;
  showWarnings(shown.response.warnings);
  showClasses(shown.response);
  draw();
}

function idsOf(bitmap, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const idOf = new Map(classes.map(({ id, colour: [r, g, b] }) => [(r << 16) | (g << 8) | b, id]));
  const ids = new Uint8Array(width * height);
  for (let index = 0; index < ids.length; index += 1) {
    ids[index] = idOf.get((pixels[4 * index] << 16) | (pixels[4 * index + 1] << 8) | pixels[4 * index + 2]);
  }
  return ids;
}

function showWarnings(warnings) {
  const rows = warnings.map(({ message }) => {
    const row = document.createElement("li");
    row.append(Object.assign(document.createElement("strong"), { textContent: "Warning" }), message);
    return row;
  });
  at("warnings").replaceChildren(...rows);
}

function groundInWords({ gsd_m: gsd, source, warnings }) {
  if (gsd === null) return "unknown";
  const takeoff = source === "height" && warnings.includes("height_above_takeoff");
  const length = gsd < 1 ? `${Number((100 * gsd).toPrecision(2))} cm` : `${gsd.toFixed(1)} m`;
  return `${length} per pixel (${takeoff ? "height above take-off" : SOURCES[source]})`;
}

function showClasses(response) {
  at("headline").textContent = `${percent(response.class_fractions[LANDING])} landing zone`;
  const rows = classes.map(({ id, name, colour }) => {
    const share = response.class_fractions[name];
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
  const seconds = Object.values(response.timings_s).reduce((sum, part) => sum + part, 0);
  const facts = {
    "Confidence": percent(response.confidence),
    "Ground": groundInWords(response.ground),
    "Size": `${shown.width} × ${shown.height}`,
    "Time": `${Math.round(1000 * seconds)} ms (network ${Math.round(1000 * response.timings_s.network)} ms)`,
    "Model": response.model_id,
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
  const alpha = shown.hasPhoto ? Math.round((255 * at("opacity").value) / 100) : 255;
  const visible = new Set([...at("classes").querySelectorAll("input:checked")].map((box) => Number(box.value)));
  // RGBA in little-endian order, which all supported processors use
  const tints = new Uint32Array(256);
  for (const { id, colour: [r, g, b] } of classes) {
    if (visible.has(id)) tints[id] = ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
  }
  const canvas = Object.assign(at("overlay"), { width: shown.width, height: shown.height });
  const overlay = new ImageData(shown.width, shown.height);
  const target = new Uint32Array(overlay.data.buffer);
  for (let index = 0; index < target.length; index += 1) target[index] = tints[shown.ids[index]];
  canvas.getContext("2d").putImageData(overlay, 0, 0);
}

function showClassAtPointer(event) {
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
  if (shown.hasPhoto) context.drawImage(at("photo"), 0, 0, shown.width, shown.height);
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
const statusLoaded = loadStatus();
statusLoaded.catch(() => fail("The service did not respond. Check that it is running, then try again."));
