// What is looked at, kept in the address, so that a link shows the same. An address without any begins with what this
// reader chose last time.

const state = new Map(new URLSearchParams(location.hash.slice(1)));
const isFresh = !state.size;

export const isGiven = name => state.has(name);

// Remembers small choices of the reader; a browser that forbids it only forgets them.
export const memory = {
  get(name, fallback) { try { return JSON.parse(localStorage.getItem('ai-lab ' + name)) ?? fallback; } catch { return fallback; } },
  set(name, value) { try { localStorage.setItem('ai-lab ' + name, JSON.stringify(value)); } catch { /* not kept */ } },
};

// Returns what the address says, if it is of the kind of the fallback; else what was chosen last time, else the fallback.
export function get(name, fallback) {
  if (!state.has(name)) {
    if (!isFresh) return fallback;
    const remembered = likened(memory.get(name, null), fallback);
    if (remembered !== fallback) set(name, remembered, fallback); // so that a link, or loading it again, shows the same
    return remembered;
  }
  if (typeof fallback === 'string') return state.get(name);
  try { return likened(JSON.parse(state.get(name)), fallback); } catch { return fallback; }
}

const kind = value => Array.isArray(value) ? 'list' : typeof value;
const likened = (value, fallback) => value != null && kind(value) === kind(fallback) ? value : fallback;

// Puts a value into the address, or takes it out where it is the fallback; `remembered` ones are for next time too.
export function set(name, value, fallback, remembered = false) {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  if (remembered) memory.set(name, value);
  if (text === (typeof fallback === 'string' ? fallback : JSON.stringify(fallback))) state.delete(name); else state.set(name, text);
  try { history.replaceState(null, '', '#' + new URLSearchParams([...state])); } catch { /* a browser that counts them */ }
}

addEventListener('hashchange', () => location.reload()); // another link was put in
