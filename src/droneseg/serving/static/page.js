// Web page of the service: sends a photo and draws the predicted mask. No framework, no requests to other hosts.
"use strict";

const at = (id) => document.getElementById(id);
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const NOT_SEARCHED = ["unknown_scale", "oblique", "unlike_training"];
const SOURCES = { argument: "given", georeference: "from the georeference", laser: "from the laser rangefinder", height: "height above ground" };

let settings = null; // constants that the service uses, too, and the classes of the model
let settingsOf = null; // id of the model whose classes these are
let shown = null; // result on display, returned by `prepare`
let request = null; // request of the latest photo; responses to earlier requests are ignored
let chosenFile = null;
let drawing = 0;
let searchNext = false; // whether to search for landing sites as soon as the photo that is being sent is shown

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
  at("find-sites").addEventListener("click", findSites);
  at("show-sites").addEventListener("change", drawSoon);
  window.addEventListener("resize", drawSoon); // rings and ranks have a constant size on the screen
  at("key-form").addEventListener("submit", useKey);
  at("stage").addEventListener("pointermove", showClassAtPointer);
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, dragged);
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && send(event.clipboardData.files[0]));
}

async function loadSettings(modelId) {
  if (settingsOf === modelId) return;
  settings = await (await fetch("/ui/settings.json")).json();
  settingsOf = modelId;
  const hasRole = (role) => settings.classes.some((entry) => entry.role === role);
  at("landing").hidden = !hasRole("landing") && !hasRole("soft");
  at("no-landing").hidden = !at("landing").hidden;
  at("soft-option").hidden = !hasRole("soft");
  at("soft-also").hidden = !hasRole("landing");
  at("people-option").hidden = !hasRole("moving");
  at("soft-names").textContent = settings.classes.filter(({ role }) => role === "soft").map(nameInWords).join(", ");
}

async function loadStatus() {
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
  // the same photo with another scale has other sites
  const searched = shown && shown.file === file && (shown.answer || at("find-sites").disabled);
  searchNext = Boolean(searched) || (searchNext && chosenFile === file);
  chosenFile = file;
  const body = photoForm(file);
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
  await loadSettings(response.model_id);
  const result = await prepare(file, response);
  if (xhr !== request) return undefined; // another photo was chosen in the meantime
  show(result);
  at("working").hidden = true;
  setStatus(`Done: ${file.name}`);
  return searchNext ? findSites() : undefined;
}

function photoForm(file) {
  const body = new FormData();
  body.append("data", file);
  body.append("gsd_m", decimal(at("gsd")));
  body.append("height_m", decimal(at("height")));
  body.append("plain", at("plain").checked);
  return body;
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
  return { file, ids, width, height, response, name, image, hasPhoto, mask: URL.createObjectURL(mask) };
}

function show(result) {
  if (shown) for (const url of [shown.image.src, shown.mask]) URL.revokeObjectURL(url);
  shown = result;
  showAnswer(null);
  at("photo").replaceWith(shown.image);
  at("stage").classList.toggle("no-photo", !shown.hasPhoto);
  document.body.classList.add("has-result");
  at("result").hidden = false;
  at("save-mask").href = shown.mask;
  at("save-mask").download = `${shown.name}.png`;
  showWarnings(shown.response.warnings);
  showClasses(shown.response);
  const scaled = shown.response.ground.gsd_m !== null; // otherwise the defaults are a share of the photo
  at("radius").placeholder = scaled ? settings.radius_m : "";
  at("people").placeholder = scaled ? settings.clearance_people_m : "";
  draw();
}

function idsOf(bitmap, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const idOf = new Map(settings.classes.map(({ id, colour: [r, g, b] }) => [(r << 16) | (g << 8) | b, id]));
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

const nameInWords = ({ name }) => name.replaceAll("-", " ");

function headline(shares) {
  const landing = settings.classes.filter(({ role }) => role === "landing");
  const [largest] = [...settings.classes].sort((a, b) => shares[b.name] - shares[a.name]);
  const named = landing.length ? landing : [largest];
  return `${percent(named.reduce((sum, { name }) => sum + shares[name], 0))} ${named.map(nameInWords).join(", ")}`;
}

function showClasses(response) {
  at("headline").textContent = headline(response.class_fractions);
  const rows = settings.classes.map(({ id, name, display: colour }) => {
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
    label.append(box, swatch, nameInWords({ name }), value);
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
  const { hatching } = settings;
  const alpha = shown.hasPhoto ? Math.round((255 * at("opacity").value) / 100) : 255;
  const visible = new Set([...at("classes").querySelectorAll("input:checked")].map((box) => Number(box.value)));
  // RGBA in little-endian order, which all supported processors use
  const tints = new Uint32Array(256);
  const stripes = new Uint32Array(256); // differ from the tints only in landing zones, which are hatched
  for (const { id, role, display: [r, g, b] } of settings.classes) {
    if (!visible.has(id)) continue;
    const tint = (weight) => ((Math.min(255, Math.round(alpha * weight)) << 24) | (b << 16) | (g << 8) | r) >>> 0;
    const hatched = role === "landing" && shown.hasPhoto;
    tints[id] = tint(hatched ? hatching.ground_opacity : 1);
    stripes[id] = tint(hatched ? hatching.stripe_opacity : 1);
  }
  const period = Math.max(hatching.min_period, Math.floor(Math.max(shown.width, shown.height) / hatching.stripes));
  const line = Math.max(1, Math.floor(period / hatching.period_in_widths));
  const canvas = Object.assign(at("overlay"), { width: shown.width, height: shown.height });
  const overlay = new ImageData(shown.width, shown.height);
  const target = new Uint32Array(overlay.data.buffer);
  for (let y = 0, index = 0; y < shown.height; y += 1) {
    for (let x = 0; x < shown.width; x += 1, index += 1) {
      target[index] = ((x + y) % period < line ? stripes : tints)[shown.ids[index]];
    }
  }
  const context = canvas.getContext("2d");
  context.putImageData(overlay, 0, 0);
  if (shown.answer && at("show-sites").checked) drawSites(context, shown.answer);
}

function drawSites(context, { sites, policy }) {
  const scale = shown.width / at("overlay").clientWidth; // pixels of the photo per pixel of the page
  const line = Math.max(2, 1.5 * scale);
  const circle = (site, radius, width, colour) => {
    context.beginPath();
    context.arc(site.x_px, site.y_px, radius, 0, 2 * Math.PI);
    Object.assign(context, { lineWidth: width, strokeStyle: colour });
    context.stroke();
  };
  Object.assign(context, { textAlign: "center", textBaseline: "middle", font: `600 ${Math.max(12, 14 * scale)}px system-ui, sans-serif` });
  const colourOf = (site) => (site.rank === 1 ? "#ffffff" : "#cdcdd2");
  const ring = (site, radius, width) => {
    circle(site, radius, width + 2 * line, "#18181b");
    circle(site, radius, width, colourOf(site));
  };
  for (const site of [...sites].reverse()) {
    if (site.rank === 1) ring(site, site.radius_px, line);
    ring(site, policy.radius_px, site.rank === 1 ? 2 * line : line);
  }
  for (const site of sites) { // above all rings
    Object.assign(context, { lineWidth: 2 * line, strokeStyle: "#18181b", fillStyle: colourOf(site) });
    context.strokeText(site.rank, site.x_px, site.y_px);
    context.fillText(site.rank, site.x_px, site.y_px);
  }
}

async function findSites() {
  searchNext = !at("working").hidden;
  if (searchNext) {
    at("landing-status").textContent = "Waiting for the prediction";
    return;
  }
  const searched = shown;
  const body = photoForm(searched.file);
  body.append("radius_m", decimal(at("radius")));
  body.append("clearance_people_m", decimal(at("people")));
  const roles = ["landing", "soft"].filter((name) => settings.classes.some(({ role }) => role === name));
  if (at("soft").checked) body.append("allow", roles.join(","));
  at("landing-status").textContent = "Searching for landing sites";
  at("find-sites").disabled = true;
  try {
    const headers = at("key").value ? { "X-API-Key": at("key").value } : {};
    const response = await fetch("/landing_sites", { method: "POST", body, headers });
    const answer = await response.json();
    if (searched !== shown) return; // another photo was chosen since
    if (response.status === 429) at("landing-status").textContent = `The service is busy. Retry in ${response.headers.get("Retry-After")} s.`;
    else if (response.status !== 200) at("landing-status").textContent = answer.error.message;
    else showAnswer(answer);
  } catch {
    at("landing-status").textContent = "The service did not respond. Check that it is running, then try again.";
  } finally {
    at("find-sites").disabled = false;
  }
}

function nearestMoving(clearances) {
  const distances = settings.classes.filter(({ role }) => role === "moving").map(({ name }) => clearances[name]);
  const known = distances.filter((distance) => distance !== null);
  return known.length ? Math.min(...known) : null;
}

function inWords(px, m) {
  return m === null ? `${Math.round(px)} px` : `${m.toFixed(1)} m`;
}

function decisionInWords({ decision, reason, message, policy }) {
  const { radius_px: radius, clearance_px: clearance, clearance_people_px: people } = policy;
  const words = decision === "site" ? message : `No landing site. ${message}`;
  if (NOT_SEARCHED.includes(reason)) return words;
  const lengths = [
    `a radius of ${inWords(radius, policy.radius_m)}`,
    `${inWords(clearance, policy.clearance_m)} from danger`,
  ];
  if (people !== null) lengths.push(`${inWords(people, policy.clearance_people_m)} from people and vehicles`);
  return `${words} Required: ${lengths.join(", ")}.`;
}

function showAnswer(answer) {
  if (shown) shown.answer = answer;
  at("landing-status").textContent = answer ? decisionInWords(answer) : "";
  at("sites-layer").hidden = !answer || answer.sites.length === 0;
  const rows = (answer ? answer.sites : []).map((site) => {
    const [people, metres] = [site.clearance_px, site.clearance_m].map(nearestMoving);
    const parts = [`room for a radius of ${inWords(site.radius_px, site.radius_m)}`];
    if (answer.policy.clearance_people_px !== null) parts.push(people === null ? "no people seen" : `people ${inWords(people, metres)} away`);
    parts.push(`probability at least ${percent(site.min_probability).replace(" ", "\u00a0")}`);
    return Object.assign(document.createElement("li"), { textContent: parts.join(", ") });
  });
  at("sites").replaceChildren(...rows);
  drawSoon();
}

function showClassAtPointer(event) {
  if (!shown) return;
  const box = at("overlay").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * shown.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * shown.height);
  const entry = settings.classes[shown.ids[y * shown.width + x]];
  if (entry) at("under").textContent = `x ${x}, y ${y}: ${nameInWords(entry)}`;
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
