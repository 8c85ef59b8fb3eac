// Builds elements. Text is always set as text: what a trial is called or holds is never read as markup.

export function element(tag, attributes = {}, ...children) {
  const made = tag === 'svg' || SVG.has(tag) ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name === 'color') made.style.background = value;
    else if (value === true) made.setAttribute(name, '');
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child != null).map(child => child instanceof Node ? child : String(child)));
  return made;
}

const SVG = new Set(['g', 'path', 'line', 'circle', 'text', 'title']);

// A curve's colour; of a dashed one in stripes.
export const swatch = (color, dash = []) => element('span', { class: 'swatch', color: dash.length ? `repeating-linear-gradient(90deg, ${color} 0 ${dash[0] / 2 + 1}px, transparent 0 ${dash[0] / 2 + 2.5}px)` : color });
export const empty = text => element('p', { class: 'empty' }, text);

export function checkbox(label, checked, onChange) {
  const box = element('input', { type: 'checkbox', onchange: () => onChange(box.checked) });
  box.checked = checked;
  return element('label', {}, box, ' ', label);
}

export function choice(label, values, chosen, onChange) {
  const select = element('select', { 'aria-label': label, onchange: () => onChange(select.value) },
    ...values.map(([value, text]) => element('option', { value }, text)));
  select.value = chosen;
  return element('label', {}, label, ' ', select);
}

// A number at five digits, in the shorter of its two forms, a whole one (a seed, a count) with all of them; other values as text.
export function show(value) {
  if (value == null) return '';
  if (typeof value !== 'number') return String(value);
  if (!Number.isFinite(value)) return String(value).replace('Infinity', 'inf').replace('NaN', 'nan');
  if (Number.isSafeInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(3).replace(/\.?0+e/, 'e');
  return trimmed(value.toPrecision(5));
}

const trimmed = text => text.includes('.') ? text.replace(/\.?0+$/, '') : text;

// The path before the name is told softly, so that names line up under the eye.
export function named(name) {
  const cut = name.lastIndexOf('/') + 1;
  return element('span', {}, cut ? element('span', { class: 'soft' }, name.slice(0, cut)) : null, name.slice(cut));
}

export function when(seconds) {
  if (!seconds) return '';
  const date = new Date(seconds * 1000);
  const two = number => String(number).padStart(2, '0');
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (date.toDateString() === new Date().toDateString()) return `${clock}:${two(date.getSeconds())}`;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock}`;
}

export function lasting(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return '';
  if (seconds < 60) return `${Number(seconds.toFixed(seconds < 10 ? 1 : 0))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`;
}

// Losses first, the loop's own numbers last.
export const byWeight = (a, b) => weight(a) - weight(b) || a.localeCompare(b);
const LAST = new Set(['lr', 'steps_per_s', 'grad_norm']);
const weight = key => key === 'loss' ? 0 : key === 'val_loss' ? 1 : key.includes('loss') ? 2 : key.includes('accuracy') ? 3 : LAST.has(key) ? 5 : 4;

// As in report/palette.py: told apart by colour-blind people too; after ten curves by dashes.
const PALETTE = ['#2e85de', '#ce067b', '#a49415', '#0c6a46', '#9b4903', '#e46ba1', '#206875', '#7d85a3', '#1d41f9', '#977b62'];
const DASHES = [[], [5, 3], [2, 2], [7, 2, 2, 2]];
export const colorOf = index => PALETTE[index % PALETTE.length];
export const dashOf = index => DASHES[Math.floor(index / PALETTE.length) % DASHES.length];
