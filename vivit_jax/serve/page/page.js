"use strict";
const $ = id => document.getElementById(id);
// Okabe and Ito's palette, which the colour-blind can tell apart; segments carry letters as well.
const COLOURS = [["#0072b2", "#fff"], ["#e69f00", "#000"], ["#009e73", "#000"], ["#cc79a7", "#000"], ["#56b4e9", "#000"],
  ["#d55e00", "#000"], ["#f0e442", "#000"], ["#767676", "#fff"]];
const PARTS = { relevance: "Relevance", timeline: "Timeline" };
let server = { models: {}, limits: {} }, video = null, recorder = null, shown = 0;

// Everything from a file or the server becomes text, never HTML.
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter(child => child != null));
  return made;
}
const percent = p => (100 * p).toFixed(p < 0.0995 ? 1 : 0) + " %";
const seconds = s => s < 60 ? s.toFixed(1) + " s" : Math.floor(s / 60) + ":" + String(Math.floor(s % 60)).padStart(2, "0");
const styled = (made, style) => { Object.assign(made.style, style); return made; };

// Returns whether the video was taken.
function choose(blob, name) {
  if (!blob) return false;
  const most = server.limits.max_mb;
  $("message").textContent = most && blob.size > most * 2 ** 20 ? `${name} is larger than ${most} MB.` : "";
  if ($("message").textContent) return false;
  video = { blob, name };
  URL.revokeObjectURL($("player").src);
  $("player").srcObject = null;
  $("player").src = URL.createObjectURL(blob);
  $("player").hidden = false;
  $("name").textContent = `${name}, ${(blob.size / 2 ** 20).toFixed(1)} MB`;
  $("start").disabled = false;
  return true;
}

function ranked(labels) {
  return element("ol", { className: "ranked" }, ...labels.map(([label, probability]) => element("li", {},
    element("div", {}, element("span", { textContent: label }), element("span", { textContent: percent(probability) })),
    element("span", { className: "track" }, styled(element("i"), { width: 100 * probability + "%" })))));
}

function timeline(segments, length) {
  const names = [...new Set(segments.map(s => s.label))];
  const sign = label => { // the letter and the colours of a label
    const number = names.indexOf(label), [background, color] = COLOURS[number % COLOURS.length];
    return [{ textContent: number < 26 ? String.fromCharCode(65 + number) : number + 1 }, { background, color }];
  };
  const bar = segments.map(s => {
    const [text, colours] = sign(s.label);
    const title = `${s.label}, ${seconds(s.start)} to ${seconds(s.end)}, ${percent(s.probability)}`;
    return styled(element("i", { ...text, title }), { ...colours, flex: `${s.end - s.start} 1 0` });
  });
  const key = segments.map(s => {
    const [text, colours] = sign(s.label);
    return element("li", {}, styled(element("b", text), colours), element("span", { textContent: s.label }),
      element("span", { textContent: `${seconds(s.start)} – ${seconds(s.end)}, ${percent(s.probability)}` }));
  });
  return [element("h3", { textContent: "Timeline" }), element("div", { className: "line" }, ...bar), scale("0 s", seconds(length)),
    element("ul", { className: "key" }, ...key)];
}
const scale = (left, right) =>
  element("div", { className: "scale" }, element("span", { textContent: left }), element("span", { textContent: right }));

function picture(source, caption) {
  return source && element("figure", {}, element("img", { src: source, alt: caption }), element("figcaption", { textContent: caption }));
}

function show(card, answer) {
  const heads = Object.entries(answer.labels);
  card.append(element("div", { className: "pictures" }, picture(answer.clip, "the clip as the model sees it"),
    picture(answer.relevance, "what its answer rests on (bright)")));
  for (const [head, labels] of heads)
    card.append(...heads.length > 1 ? [element("h3", { textContent: head })] : [element("h3", { textContent: "Labels" })], ranked(labels));
  if (answer.timeline) card.append(...timeline(answer.timeline, answer.video.seconds));
  else if ($("timeline").checked)
    card.append(element("p", { className: "faint", textContent: "No timeline: the frames of this model are spread over the whole video." }));
  if (answer.moments) {
    const most = Math.max(...answer.moments, 1e-9);
    const bars = answer.moments.map(x => styled(element("i"), { height: 100 * x / most + "%" }));
    card.append(element("h3", { textContent: "Relevance over the clip" }), element("div", { className: "moments" }, ...bars),
      scale("first frame", "last"));
  }
  const { frames, width, height, seconds: length } = answer.video;
  card.append(element("p", { className: "faint", textContent: `${answer.file}: ${frames} frames of ${width} × ${height}, ${seconds(length)}` }));
}

async function ask(model, card, run, chosen) {
  const form = new FormData();
  form.append("file", chosen.blob, chosen.name);
  const query = new URLSearchParams({ model, clip: true });
  for (const part in PARTS) if ($(part).checked) query.set(part, true);
  for (let attempt = 0; run === shown; attempt++) {
    const response = await fetch("api/predict?" + query, { method: "POST", body: form });
    const wait = Number(response.headers.get("Retry-After"));
    if (response.status === 429 && attempt < 5) { // others are waiting too
      card.lastChild.textContent = `The server is busy; trying again in ${wait} s.`;
      await new Promise(done => setTimeout(done, 1000 * wait));
      continue;
    }
    const answer = await response.json().catch(() => ({ detail: response.statusText }));
    if (response.ok) return answer;
    throw new Error(typeof answer.detail === "string" ? answer.detail : JSON.stringify(answer.detail));
  }
}

async function predict() {
  const run = ++shown, chosen = video; // another may be chosen meanwhile
  $("start").disabled = true;
  $("models").replaceChildren();
  for (const name of Object.keys(server.models)) {
    if (Object.keys(server.models).length > 1 && !$("model " + name).checked) continue;
    const card = element("section", { className: "card" }, element("h2", { textContent: name }), element("progress"), element("p"));
    $("models").append(card);
    let answer, problem;
    try { answer = await ask(name, card, run, chosen); } catch (error) { problem = error.message; }
    if (run !== shown) return;
    card.replaceChildren(card.firstChild);
    if (answer) show(card, answer); else card.append(element("p", { className: "error", textContent: problem }));
  }
  $("start").disabled = false;
}

async function record() {
  if (!navigator.mediaDevices) {
    $("message").textContent = "Browsers give the camera only to pages from localhost or https.";
    return;
  }
  let stream;
  try { stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480, facingMode: "environment" } }); }
  catch (error) { $("message").textContent = `The camera cannot be used: ${error.message}`; return; }
  const chunks = [], longest = Math.min(server.limits.max_seconds || 60, 60);
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = event => chunks.push(event.data);
  recorder.onstop = () => {
    clearTimeout(end);
    stream.getTracks().forEach(track => track.stop());
    $("stop").hidden = true;
    $("camera").hidden = false;
    const type = recorder.mimeType.split(";")[0];
    Object.assign($("player"), { srcObject: null, hidden: !video }); // the video before, if this one is refused
    $("name").textContent = video ? video.name : "";
    if (choose(new Blob(chunks, { type }), "camera." + (type.endsWith("mp4") ? "mp4" : "webm"))) predict();
  };
  const end = setTimeout(() => recorder.stop(), 1000 * (longest - 1));
  recorder.start();
  Object.assign($("player"), { srcObject: stream, hidden: false });
  $("player").play();
  $("name").textContent = `Recording, at most ${Math.round(longest - 1)} s.`;
  $("message").textContent = "";
  $("camera").hidden = true;
  $("stop").hidden = false;
}

const option = (id, text) => element("label", { className: "option" },
  element("input", { type: "checkbox", id, checked: true }), element("span", { textContent: text }));

async function load() {
  server = await (await fetch("api/models")).json();
  const names = Object.keys(server.models), { max_mb, max_seconds } = server.limits;
  $("limits").textContent = `at most ${max_mb} MB and ${max_seconds} s`;
  if (names.length > 1) $("options").append(...names.map(name => option("model " + name, name)));
  $("options").append(...Object.entries(PARTS).map(([id, text]) => option(id, text)));
}

$("file").onchange = event => choose(event.target.files[0], event.target.files[0]?.name);
$("start").onclick = predict;
$("camera").onclick = record;
$("stop").onclick = () => recorder.stop();
for (const [type, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]])
  $("drop").addEventListener(type, event => {
    event.preventDefault();
    $("drop").classList.toggle("over", over);
    if (type === "drop") choose(event.dataTransfer.files[0], event.dataTransfer.files[0]?.name);
  });
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => event.preventDefault()); // a miss does not leave the page
load().catch(error => { $("message").textContent = `The server does not answer: ${error.message}`; });
