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

export function show(value) {
  if (value == null) return '';
  if (typeof value !== 'number') return String(value);
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(3) : value.toPrecision(5).replace(/\.?0+$/, '');
}

// Remembers small choices of the reader; a browser that forbids it only forgets them.
export const memory = {
  get(name, fallback) { try { return JSON.parse(localStorage.getItem('ai-lab ' + name)) ?? fallback; } catch { return fallback; } },
  set(name, value) { try { localStorage.setItem('ai-lab ' + name, JSON.stringify(value)); } catch { /* not kept */ } },
};

const PALETTE = ['#2f7ed8', '#e4572e', '#3aa655', '#8e5bd0', '#d49a00', '#00a3a3', '#d6408f', '#7a8b99', '#8a5a2b', '#5c8f00'];
export const colorOf = index => PALETTE[index % PALETTE.length];
