// The demo: resize an image as Pillow does, run the network, and show the probabilities as bars.

const byId = (id) => document.getElementById(id);
const status = byId("answer");
let started = null; // promise of the session
let turn = Promise.resolve(); // one image at a time

async function part(id) {
  const packed = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start() {
  const [runtime, wasm, model] = await Promise.all(["runtime", "wasm", "model"].map(part));
  const ort = await import(URL.createObjectURL(new Blob([runtime], { type: "text/javascript" })));
  ort.env.wasm.numThreads = 1; // more threads need HTTP headers, which a local file does not have
  ort.env.wasm.wasmBinary = wasm.buffer;
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return { ort, session };
}

// Pillow's bilinear filter along one axis: a triangle of the width of the step, at least one pixel, rounded to 8 bits.
function resize(picture, size) {
  const { width, height, data } = picture;
  const out = new Uint8ClampedArray(size * height * 4);
  const step = width / size;
  const reach = Math.max(step, 1);
  for (let x = 0; x < size; x++) {
    const center = (x + 0.5) * step;
    const from = Math.max(0, Math.floor(center - reach + 0.5));
    const to = Math.min(width, Math.floor(center + reach + 0.5));
    const taps = [];
    for (let i = from; i < to; i++) taps.push(Math.max(0, 1 - Math.abs((i + 0.5 - center) / reach)));
    const total = taps.reduce((sum, tap) => sum + tap, 0);
    for (let y = 0; y < height; y++) {
      for (let channel = 0; channel < 4; channel++) {
        let sum = 0;
        taps.forEach((tap, i) => (sum += tap * data[4 * (y * width + from + i) + channel]));
        out[4 * (y * size + x) + channel] = Math.floor(sum / total + 0.5);
      }
    }
  }
  return { width: size, height, data: out };
}

function transpose({ width, height, data }) {
  const out = new Uint8ClampedArray(data.length);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      out.set(data.subarray(4 * (y * width + x), 4 * (y * width + x + 1)), 4 * (x * height + y));
  return { width: height, height: width, data: out };
}

// Half of a difference, rounded half to even as in Python.
function half(difference) {
  return difference % 2 ? 2 * Math.round(difference / 4) : difference / 2;
}

// Resize the shorter side to `size` pixels and crop the center: hyperzoo.preprocess with crop_pct 1.
function fit(bitmap, size) {
  const shrink = Math.min(1, 2048 / Math.max(bitmap.width, bitmap.height)); // limit of canvases on phones
  const canvas = new OffscreenCanvas(Math.ceil(bitmap.width * shrink), Math.ceil(bitmap.height * shrink));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // background of transparent pixels
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  let picture = context.getImageData(0, 0, canvas.width, canvas.height);
  const shorter = Math.min(picture.width, picture.height);
  const width = Math.floor((size * picture.width) / shorter);
  const height = Math.floor((size * picture.height) / shorter);
  if (width !== picture.width) picture = resize(picture, width);
  if (height !== picture.height) picture = transpose(resize(transpose(picture), height));
  const whole = new ImageData(picture.data, width, height);
  const seen = byId("seen").getContext("2d", { willReadFrequently: true });
  seen.clearRect(0, 0, size, size);
  seen.putImageData(whole, -half(width - size), -half(height - size));
  return seen.getImageData(0, 0, size, size).data;
}

async function probabilities({ ort, session }, pixels, size, { mean, std }) {
  const input = new Float32Array(3 * size * size);
  for (let i = 0; i < input.length; i++) {
    const channel = Math.floor(i / (size * size));
    input[i] = (pixels[4 * (i % (size * size)) + channel] / 255 - mean[channel]) / std[channel];
  }
  const feeds = { [session.inputNames[0]]: new ort.Tensor("float32", input, [1, 3, size, size]) };
  const logits = (await session.run(feeds))[session.outputNames[0]].data;
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function show(found, classes, label) {
  const order = found.map((_, i) => i).sort((a, b) => found[b] - found[a]);
  const percent = (i) => `${(100 * found[i]).toFixed(1)} %`;
  const lines = order.map((i) => {
    const line = document.createElement("li");
    const bar = element("span", "bar");
    bar.append(element("span", ""));
    bar.firstChild.style.width = `${100 * found[i]}%`;
    line.append(element("span", "class", classes[i]), bar, element("span", "percent", percent(i)));
    return line;
  });
  byId("classes").replaceChildren(...lines);
  byId("result").hidden = false;
  const best = classes[order[0]];
  const verdict = label && (label === best ? " This matches its label." : ` Its label is ${label}.`);
  status.textContent = `${best}, ${percent(order[0])}.${verdict}`;
}

function classify(source, label) {
  turn = turn.then(() => answer(source, label));
}

async function answer(source, label) {
  try {
    status.textContent = started ? "Running the network ..." : "Loading the network ...";
    started ??= start();
    const facts = JSON.parse(byId("facts").textContent);
    const size = facts.input_size.at(-1);
    const pixels = fit(await createImageBitmap(source), size);
    show(await probabilities(await started, pixels, size, facts), facts.label_names, label);
  } catch (error) {
    byId("result").hidden = true;
    status.textContent =
      error.name === "InvalidStateError"
        ? "The browser cannot read this file as an image."
        : `The demo cannot run in this browser (${error.message}). Everything else on the page works.`;
  }
}

for (const button of document.querySelectorAll(".sample")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll(".sample")) other.setAttribute("aria-pressed", other === button);
    classify(button.firstElementChild, button.firstElementChild.alt);
  });
}
byId("own").addEventListener("change", (event) => {
  for (const other of document.querySelectorAll(".sample")) other.setAttribute("aria-pressed", false);
  if (event.target.files[0]) classify(event.target.files[0], "");
});
