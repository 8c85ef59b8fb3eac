// Asks the server; curves come as binary (see server.py).

export async function getJson(path) {
  return (await get(path)).json();
}

export async function getText(path) {
  return (await get(path)).text();
}

// Returns [{id, key, x: Float64Array, y: Float64Array}, ...].
export async function getCurves(ids, keys, { x = 'step', points = 1000, file = 'metrics' } = {}) {
  if (!ids.length || !keys.length) return [];
  const query = new URLSearchParams([...ids.map(id => ['id', id]), ...keys.map(key => ['key', key])]);
  query.set('x', x); query.set('points', points); query.set('file', file);
  const buffer = await (await get('api/curves?' + query)).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  return head.map(({ id, key, n }) => {
    const curve = { id, key, x: new Float64Array(buffer, at, n), y: new Float64Array(buffer, at + 8 * n, n) };
    at += 16 * n;
    return curve;
  });
}

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${response.status}: ${(await response.text()).slice(0, 200)}`);
  return response;
}
