// Files for the reader: tables as CSV, charts as PNG.

import { element } from './dom.js';

export function saveCsv(name, rows) {
  save(`${name}.csv`, new Blob([rows.map(row => row.map(cell).join(',') + '\r\n').join('')], { type: 'text/csv' }));
}

// A text that a spreadsheet would take for a formula is told as text.
function cell(value) {
  if (value == null) return '';
  const text = typeof value === 'string' && /^[=+\-@\t\r]/.test(value) && !Number.isFinite(Number(value)) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// The chart with its title above and what its colours mean below, on the ground of the page.
export function savePng(name, canvas, legend) {
  const scale = devicePixelRatio;
  const style = getComputedStyle(document.body);
  const line = 18 * scale;
  const columns = Math.max(1, Math.floor(canvas.width / (220 * scale)));
  const made = element('canvas', { width: canvas.width, height: canvas.height + 2 * line + Math.ceil(legend.length / columns) * line });
  const pen = made.getContext('2d');
  pen.fillStyle = style.backgroundColor;
  pen.fillRect(0, 0, made.width, made.height);
  pen.fillStyle = style.color;
  pen.font = `600 ${13 * scale}px system-ui, sans-serif`;
  pen.fillText(name, 10 * scale, 0.9 * line, canvas.width - 20 * scale);
  pen.drawImage(canvas, 0, 1.3 * line);
  pen.font = `${11 * scale}px system-ui, sans-serif`;
  const width = (canvas.width - 20 * scale) / columns;
  legend.forEach(({ label, color, dash }, index) => {
    const [x, y] = [10 * scale + index % columns * width, canvas.height + 1.6 * line + Math.floor(index / columns) * line];
    pen.strokeStyle = color;
    pen.lineWidth = 2 * scale;
    pen.setLineDash((dash ?? []).map(length => length * scale));
    pen.beginPath(); pen.moveTo(x, y); pen.lineTo(x + 18 * scale, y); pen.stroke();
    pen.fillText(label, x + 24 * scale, y + 4 * scale, width - 30 * scale);
  });
  made.toBlob(blob => save(`${name}.png`, blob));
}

function save(name, blob) {
  const link = element('a', { href: URL.createObjectURL(blob), download: name.replace(/[^\w.+-]+/g, '-') });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
