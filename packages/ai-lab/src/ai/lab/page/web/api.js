// Asks the server; curves come as binary (see server.py).

const MOST = 400; // curves a request

export async function getJson(path) {
  return (await get(path)).json();
}

export async function getText(path) {
  return (await get(path)).text();
}

export const getDetails = trials => Promise.all(trials.map(trial => getJson(`api/trial/${trial.id}`)));

// Returns [{id, key, smooth, x: Float64Array, y: Float64Array}, ...]; many are asked for in several requests.
export async function getCurves(ids, keys, choices = {}) {
  if (!ids.length || !keys.length) return [];
  const few = parts(ids, MOST);
  const asked = few.flatMap(some => parts(keys, Math.max(1, Math.floor(MOST / some.length))).map(part => askCurves(some, part, choices)));
  return (await Promise.all(asked)).flat();
}

const parts = (list, size) => Array.from({ length: Math.ceil(list.length / size) }, (_, index) => list.slice(index * size, (index + 1) * size));

async function askCurves(ids, keys, { x = 'step', points = 1000, file = 'metrics', smooth = 0, zoom = null }) {
  const query = new URLSearchParams([...ids.map(id => ['id', id]), ...keys.map(key => ['key', key])]);
  query.set('x', x); query.set('points', points); query.set('file', file);
  if (smooth) query.set('smooth', smooth);
  if (zoom) { query.set('from', zoom[0]); query.set('to', zoom[1]); }
  const buffer = await (await get('api/curves?' + query)).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  return head.map(({ id, key, n, smooth }) => {
    const curve = { id, key, smooth, x: new Float64Array(buffer, at, n), y: new Float64Array(buffer, at + 8 * n, n) };
    at += 16 * n;
    return curve;
  });
}

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${response.status}: ${(await response.text()).slice(0, 200)}`);
  return response;
}
