// Asks the server; curves come as binary (see server.py). A published page (see publish.py) has the answers beside it.

const MOST = 400; // curves a request

const { published } = globalThis;
export const isPublished = Boolean(published);
export const isKept = id => !published || Object.hasOwn(published.places, id);

export async function getJson(path) {
  if (!published) return (await get(path)).json();
  if (path.startsWith('api/trials')) return structuredClone(published.table);
  if (path.startsWith('api/importance/')) return published.importance[path.split('/')[2]] ?? {};
  const answer = await kept(path);
  return typeof answer === 'string' ? JSON.parse(answer) : structuredClone(answer);
}

export async function getText(path) {
  return published ? kept(path) : (await get(path)).text();
}

export async function sendJson(path, value) {
  return (await get(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(value) })).json();
}

// Where a picture is.
export const pictureAt = path => published ? publishedTrials[published.places[path.split('/')[2]]]?.pictures[decodeURIComponent(path.split('/').slice(3).join('/'))] ?? '' : path;

export const getDetails = trials => Promise.all(trials.map(trial => getJson(`api/trial/${trial.id}`)));

// Returns [{id, key, smooth, x: Float64Array, y: Float64Array}, ...]; many are asked for in several requests.
export async function getCurves(ids, keys, choices = {}) {
  if (!ids.length || !keys.length) return [];
  if (published) return (await Promise.all(ids.map(id => keptCurves(id, keys, choices)))).flat();
  const few = parts(ids, MOST);
  const asked = few.flatMap(some => parts(keys, Math.max(1, Math.floor(MOST / some.length))).map(part => askCurves(some, part, choices)));
  return (await Promise.all(asked)).flat();
}

// Curves that are looked at while they grow: of what is known only what came since is asked for.
export class Following {
  constructor() {
    this.known = new Map();
    this.how = '';
  }

  async curves(ids, keys, choices) {
    const how = JSON.stringify(choices);
    if (how !== this.how) [this.how, this.known] = [how, new Map()];
    const { known } = this;
    const markOf = (id, key) => known.get(JSON.stringify([id, key, false]))?.mark ?? '';
    const answer = await getCurves(ids, keys, { ...choices, markOf });
    const now = new Map();
    const curves = answer.map(curve => {
      const place = JSON.stringify([curve.id, curve.key, curve.smooth]);
      const before = curve.follows ? known.get(place) : null;
      const whole = before ? { ...curve, x: joined(before.x, curve.x), y: joined(before.y, curve.y) } : curve;
      now.set(place, whole.x.length > LONGEST ? { ...whole, mark: '' } : whole); // of a long one its whole is thinned again
      return whole;
    });
    if (how === this.how) this.known = now;
    return curves;
  }
}

const LONGEST = 5000;

function joined(left, right) {
  if (!right.length) return left;
  const both = new Float64Array(left.length + right.length);
  both.set(left);
  both.set(right, left.length);
  return both;
}

const parts = (list, size) => Array.from({ length: Math.ceil(list.length / size) }, (_, index) => list.slice(index * size, (index + 1) * size));

async function askCurves(ids, keys, { x = 'step', points = 1000, file = 'metrics', smooth = 0, zoom = null, markOf = null }) {
  const query = new URLSearchParams([...ids.map(id => ['id', id]), ...keys.map(key => ['key', key])]);
  query.set('x', x); query.set('points', points); query.set('file', file);
  if (smooth) query.set('smooth', smooth);
  if (markOf) query.set('have', ids.flatMap(id => keys.map(key => markOf(id, key))).join());
  if (zoom) { query.set('from', zoom[0]); query.set('to', zoom[1]); }
  const buffer = await (await get('api/curves?' + query)).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  return head.map(({ id, key, n, smooth, mark, follows }) => {
    const curve = { id, key, smooth, mark, follows, x: new Float64Array(buffer, at, n), y: new Float64Array(buffer, at + 8 * n, n) };
    at += 16 * n;
    return curve;
  });
}

async function get(path, how = {}) {
  const response = await fetch(path, how);
  if (!response.ok) throw new Error(`${response.status}: ${(await response.text()).slice(0, 200)}`);
  return response;
}

// -- a published page

async function kept(path) {
  const [, , id, ...rest] = path.split('/');
  const trial = await trialOf(id);
  const name = decodeURIComponent(rest.join('/'));
  return name === '' ? trial.details : name === 'log' ? trial.log : name === 'diff' ? trial.diff : trial.kept[name];
}

const loading = new Map();
const folder = published?.data ?? 'data'; // of a page that is written over in this moment the data stay those before

function trialOf(id) {
  const place = published.places[id];
  if (!loading.has(place)) {
    loading.set(place, new Promise((done, failed) => {
      const script = document.createElement('script');
      script.src = `${folder}/${place}.js`;
      script.onload = () => done(publishedTrials[place]);
      script.onerror = () => { loading.delete(place); failed(new Error(`${folder}/${place}.js is missing: load the page again`)); };
      document.head.append(script);
    }));
  }
  return loading.get(place);
}

async function keptCurves(id, keys, { x = 'step', file = 'metrics', smooth = 0, zoom = null }) {
  const { curves } = await trialOf(id);
  const other = x.startsWith('by:') ? curves[file][x.slice(3)]?.map(numbers) : null;
  if (x.startsWith('by:') && !other) return [];
  return keys.filter(key => Object.hasOwn(curves[file], key)).flatMap(key => {
    const [steps, times, values] = curves[file][key].map(numbers);
    const along = other ? steps.map(step => valueAt(other[0], other[2], step)) : x === 'time' ? times.map(time => time - times[0]) : steps;
    return (smooth ? [false, true] : [false]).map(smoothed => {
      const curve = { id, key, smooth: smoothed, x: along, y: smoothed ? average(values, smooth) : values };
      return zoom ? between(curve, ...zoom) : curve;
    });
  });
}

const numbers = text => new Float64Array(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);

// As smooth.py, over the points that were kept.
function average(values, weight) {
  let [sum, mass] = [0, 0];
  const level = values.find(Number.isFinite) ?? 0;
  return values.map(value => {
    const finite = Number.isFinite(value);
    [sum, mass] = [sum * weight + (finite ? value - level : 0), mass * weight + finite];
    return finite ? level + sum / mass : value;
  });
}

// The value at a step of what was logged at others; NaN outside of them.
function valueAt(steps, values, step) {
  const after = steps.findIndex(one => one >= step);
  if (after < 0 || (after === 0 && steps[0] > step)) return NaN;
  return steps[after] === step ? values[after] : values[after - 1] + (values[after] - values[after - 1]) * (step - steps[after - 1]) / (steps[after] - steps[after - 1]);
}

// The points from low to high, and one more to each side.
function between(curve, low, high) {
  const inside = Array.from(curve.x.keys()).filter(index => curve.x[index] >= low && curve.x[index] <= high);
  const [first, last] = inside.length ? [Math.max(0, inside[0] - 1), inside.at(-1) + 2] : [0, 0];
  return { ...curve, x: curve.x.slice(first, last), y: curve.y.slice(first, last) };
}
