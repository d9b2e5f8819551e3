// Pictures -> cards with classes. Names and errors are written with textContent only, never as markup.

const MAX_REQUESTS = 4; // at a time; the other pictures wait in the page
const MAX_RETRIES = 5; // of a picture while the server is busy
const MAX_WAIT_S = 60; // that the server may ask for
const MAX_THUMBNAIL = 640; // its side in pixels
const ENGINES = { paddle: 'Paddle Inference', tensorrt: 'TensorRT', onnxruntime: 'ONNX Runtime', openvino: 'OpenVINO' };

const $ = (selector, within = document) => within.querySelector(selector);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const mebibytes = (bytes) => `${+(bytes / 2 ** 20).toPrecision(3)} MiB`;
const megapixels = (pixels) => `${+(pixels / 1e6).toPrecision(3)} megapixels`;
const duration = (time) => `${time < 9.95 ? time.toFixed(1) : Math.round(time)} ms`;
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? '' : '.');

/** An error of one picture, as one sentence. wait: seconds after which to send it again */
class Problem extends Error {
  constructor(message, how = {}) {
    super(sentence(message));
    Object.assign(this, { retry: false, wait: 0 }, how);
  }
}

/** A function that runs async functions, `limit` at a time, in the order of the calls. */
function limiter(limit) {
  const queue = [];
  let free = limit;
  return async (work) => {
    if (free) free -= 1;
    else await new Promise((start) => queue.push(start));
    try {
      return await work();
    } finally {
      if (queue.length) queue.shift()();
      else free += 1;
    }
  };
}
const sending = limiter(MAX_REQUESTS);
const drawing = limiter(2);

// ---- the server

let about = null;

const items = (texts) => texts.map((text) => Object.assign(document.createElement('li'), { textContent: text }));

async function describe() {
  let facts = ['The server cannot be reached.'];
  try {
    const response = await fetch('about');
    if (!response.ok) throw new Error(response.statusText);
    about = await response.json();
    const { model, classes, accuracy, limits, reason } = about;
    const engine = ENGINES[about.engine] ?? about.engine;
    facts = [classes === 1 ? '1 class' : `${classes.toLocaleString('en')} classes`, engine];
    if (accuracy?.top1 != null) facts.push(`${percent(accuracy.top1)} top-1${accuracy.data && accuracy.data !== 'folder' ? ` on ${accuracy.data}` : ''}`);
    document.title = `${model} – image classification`;
    $('#model').textContent = model;
    $('#hint').textContent = `Each up to ${mebibytes(limits.bytes)} and ${megapixels(limits.pixels)}`;
    $('#why').hidden = !reason;
    $('#why summary').textContent = `Why ${engine}`;
    $('#reason').replaceChildren(...items(reason.split('; ')));
  } catch {
    about = null;
  } finally {
    $('#facts').replaceChildren(...items(facts));
  }
}

/** POST the file once: the answer, or a Problem. */
async function send(file, signal) {
  await file.slice(0, 1).arrayBuffer().catch(() => { throw new Problem('This cannot be read; is it a folder?'); });
  const response = await fetch('classify?top=5', { method: 'POST', body: file, signal }).catch(() => {
    throw new Problem('The server cannot be reached', { retry: true });
  });
  const answer = await response.json().catch(() => ({}));
  if (response.ok && answer.classes) return answer;
  const { ok, status, headers } = response;
  const error = answer.error?.replace(/^the body/, 'this file') ?? `The server answered ${status} without a reason`;
  const wait = status === 503 ? Math.min(Number(headers.get('Retry-After')) || 1, MAX_WAIT_S) : 0;
  throw new Problem(error, { wait, retry: ok || status === 408 || status >= 500 });
}

// ---- one picture, one card

const cards = new Set(); // { file, item, signal, abort, state }

function add(files) {
  const fresh = Array.from(files, (file) => {
    const item = $('#card').content.cloneNode(true).firstElementChild;
    const abort = new AbortController();
    const card = { file, item, abort, signal: abort.signal };
    $('.file b', item).textContent = $('.file b', item).title = file.name;
    $('.photo', item).dataset.kind = file.name.split('.').slice(1).pop()?.slice(0, 5) ?? '';
    $('.remove', item).setAttribute('aria-label', `Remove ${file.name}`);
    $('.remove', item).onclick = () => remove(card);
    $('.retry', item).onclick = () => { $('.card', item).focus(); classify(card); };
    item.onkeydown = (event) => {
      if (event.key === 'Delete' || event.key === 'Backspace') { event.preventDefault(); remove(card); }
    };
    return card;
  });
  $('#cards').prepend(...fresh.map((card) => card.item));
  fresh.forEach((card) => cards.add(card));
  fresh.forEach(classify);
}

function show(card, state, note = '', retry = false) {
  card.state = state;
  $('.card', card.item).dataset.state = state;
  $('.card', card.item).setAttribute('aria-label', note ? `${card.file.name}: ${note}` : card.file.name);
  $('.note', card.item).textContent = state === 'done' ? '' : note;
  $('.retry', card.item).hidden = !retry;
  if (state === 'done' || state === 'failed') {
    $('#log').append(Object.assign(document.createElement('p'), { textContent: `${card.file.name}: ${note}` }));
    if ($('#log').children.length > 20) $('#log').firstChild.remove();
  }
  summarise();
}

async function classify(card) {
  const { file, signal } = card;
  show(card, 'waiting', 'Waiting');
  try {
    if (!card.drawn) await drawing(() => !signal.aborted && draw(card));
    await sending(async () => {
      for (let time = 1; !signal.aborted; time += 1) {
        show(card, 'working', 'Classifying');
        const since = performance.now();
        try {
          result(card, await send(file, signal), performance.now() - since);
          return;
        } catch (problem) {
          if (!problem.wait || time > MAX_RETRIES) throw problem;
          for (let left = problem.wait; left > 0 && !signal.aborted; left -= 1) {
            show(card, 'working', `Server busy; again in ${left}\u00a0s (${time} of ${MAX_RETRIES})`);
            await new Promise((resolve) => setTimeout(resolve, 1000));
          }
        }
      }
    });
  } catch (problem) {
    if (!signal.aborted) show(card, 'failed', problem.message, problem.retry);
  }
}

/** Draw the part of the picture that the network sees. A Problem if the picture exceeds the limits. */
async function draw(card) {
  const { file, item } = card;
  await described;
  const { limits = { bytes: Infinity, pixels: Infinity }, input = { size: 1, resize: 1 } } = about ?? {};
  if (file.size > limits.bytes) throw new Problem(`This file has ${mebibytes(file.size)}; the server takes up to ${mebibytes(limits.bytes)}`);
  const url = URL.createObjectURL(file);
  try {
    const image = Object.assign(new Image(), { src: url }); // only its header is decoded
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject }));
    const { naturalWidth: width, naturalHeight: height } = image;
    $('.file span', item).textContent = `${width} × ${height}`;
    if (width * height > limits.pixels) throw new Problem(`This picture has ${megapixels(width * height)}; the server takes up to ${megapixels(limits.pixels)}`);
    const side = Math.max(1, Math.round(Math.min(width, height) * (input.size / input.resize)));
    const small = Math.min(side, MAX_THUMBNAIL);
    const options = { resizeWidth: small, resizeHeight: small, resizeQuality: 'medium' };
    const square = await createImageBitmap(file, Math.floor((width - side) / 2), Math.floor((height - side) / 2), side, side, options);
    const canvas = new OffscreenCanvas(small, small);
    canvas.getContext('2d').drawImage(square, 0, 0);
    square.close();
    const coarse = small < 128;
    const thumbnail = Object.assign(new Image(), { alt: `The picture ${file.name}`, className: coarse ? 'coarse' : '' });
    thumbnail.src = URL.createObjectURL(await canvas.convertToBlob({ type: coarse ? 'image/png' : 'image/webp', quality: 0.9 }));
    thumbnail.onload = () => URL.revokeObjectURL(thumbnail.src);
    $('.photo', item).replaceChildren(thumbnail);
  } catch (problem) {
    if (problem instanceof Problem) throw problem;
    // This browser cannot read the picture; the server may.
  } finally {
    URL.revokeObjectURL(url);
  }
  card.drawn = true;
}

function result(card, { classes, milliseconds: { decode, queue, network }, batch, model, width, height }, trip) {
  $('.file span', card.item).textContent = `${width} × ${height}`;
  $('.bars', card.item).replaceChildren(...classes.map(({ name, probability }) => {
    const row = $('#bar').content.cloneNode(true);
    const meter = $('.bar', row);
    $('.name', row).textContent = name;
    $('.percent', row).textContent = percent(probability);
    meter.ariaLabel = name;
    meter.ariaValueNow = probability;
    meter.ariaValueText = percent(probability);
    meter.style.setProperty('--share', probability);
    return row;
  }));
  const times = [...[decode, queue, network, trip].map(duration), batch];
  card.item.querySelectorAll('dd').forEach((element, at) => { element.textContent = times[at]; });
  $('.times', card.item).hidden = false;
  show(card, 'done', `${classes[0].name}, ${percent(classes[0].probability)}`);
  if (model !== about?.model) describe(); // the server was restarted with another model
}

function remove(card) {
  const { item } = card;
  const neighbour = item.nextElementSibling ?? item.previousElementSibling;
  const focused = item.contains(document.activeElement);
  card.abort.abort();
  cards.delete(card);
  item.remove();
  summarise();
  if (focused) (neighbour ? $('.card', neighbour) : $('#picker')).focus();
}

function summarise() {
  const states = [...cards].map((card) => card.state);
  const number = (name) => states.filter((state) => state === name).length;
  const parts = [
    states.length === 1 ? '1 picture' : `${states.length} pictures`,
    number('working') && `${number('working')} under way`,
    number('waiting') && `${number('waiting')} waiting`,
    number('failed') && `${number('failed')} failed`,
  ];
  $('#summary').textContent = parts.filter(Boolean).join(' · ');
  $('#results').hidden = !states.length;
  document.body.classList.toggle('busy', states.length > 0);
}

// ---- the page

const night = matchMedia('(prefers-color-scheme: dark)');

/** light or dark, as chosen now or on an earlier visit; null: the theme of the system. */
function chosen(value = null) {
  try {
    if (value) localStorage.setItem('theme', value);
    return localStorage.getItem('theme');
  } catch { // the browser may forbid it
    return value;
  }
}

function paint(value) {
  if (value) document.documentElement.dataset.theme = value;
  $('#theme').ariaPressed = (value ?? (night.matches ? 'dark' : 'light')) === 'dark';
}

paint(chosen());
night.onchange = () => paint(document.documentElement.dataset.theme);
$('#theme').onclick = () => paint(chosen($('#theme').ariaPressed === 'true' ? 'light' : 'dark'));

for (const input of [$('#picker'), $('#shot')]) {
  input.onchange = () => {
    add(input.files);
    input.value = ''; // the same file may be chosen again
  };
}
$('#clear').onclick = () => {
  [...cards].forEach(remove);
  $('#picker').focus();
};
document.onpaste = ({ clipboardData }) => add(clipboardData.files);
document.ondragover = (event) => {
  event.preventDefault(); // files may be dropped anywhere
  document.body.classList.add('dragging');
};
document.ondragleave = ({ relatedTarget }) => document.body.classList.toggle('dragging', relatedTarget !== null);
document.ondrop = (event) => {
  event.preventDefault(); // otherwise the browser opens what was dropped
  document.body.classList.remove('dragging');
  add(event.dataTransfer.files);
  if (!event.dataTransfer.files.length) $('#hint').textContent = 'No file was dropped';
};

$('#curl').textContent = `curl --data-binary @picture.jpg ${new URL('classify', location.href)}`;
const described = describe();
