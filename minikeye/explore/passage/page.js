// The page of a text: what Python packed, three choices, and what they change. Text from outside is only ever textContent.
// Choices are numbers: -1 for all layers, all queries, all indexer heads together.

// Undo document.py: planes of bits of the counts, first of all heads together, then of each alone; then the attention of
// the pieces that are selected at all, three bytes each.
function unpack({ header: s, bytes }) {
  const [layers, queries, pieces] = s.shape, cells = layers * queries * pieces;
  let at = 0;
  const counts = s.bits.map((planes) => {
    const found = new Uint16Array(cells);
    for (let plane = 0; plane < planes; plane++, at += Math.ceil(cells / 8))
      for (let n = 0; n < cells; n++) found[n] |= ((bytes[at + (n >> 3)] >> (7 - (n & 7))) & 1) << plane;
    return found;
  });
  const mass = new Int32Array(cells), there = s.selected;
  for (let n = 0, k = 0; n < cells; n++) {
    if (!counts[0][n]) continue;
    mass[n] = bytes[at + k] | (bytes[at + k + there] << 8) | (bytes[at + k + 2 * there] << 16);
    k++;
  }
  const chosen = (number, total) => (number < 0 ? [...Array(total).keys()] : [number]);
  // The sum of each piece over the chosen layers and queries, and how many these are.
  const sums = (all, { layer, query }) => {
    const total = new Float64Array(pieces);
    const rows = chosen(layer, layers).flatMap((l) => chosen(query, queries).map((q) => (l * queries + q) * pieces));
    for (const row of rows) for (let p = 0; p < pieces; p++) total[p] += all[row + p];
    return { total, rows: rows.length };
  };
  s.times = (view) => sums(counts[view.head + 1], view);
  s.attention = (view) => {
    const { total, rows } = sums(mass, view);
    return total.map((sum) => (sum * s.unit) / rows);
  };
  s.full = ({ layer, query, head }) =>
    head < 0 && chosen(layer, layers).every((l) => chosen(query, queries).every((q) => s.whole[l][q]));
  return s;
}

const $ = (id) => document.getElementById(id);
const clamp = (n, low, high) => Math.min(high, Math.max(low, n));

function start(s) {
  const view = { layer: -1, query: -1, head: -1 };
  const tokens = [...document.querySelectorAll("#passage code span")];
  const line = tokens.map((token) => token.closest("li").querySelector("b").textContent);
  let here = -1, times, attention;

  // Everything that can be changed is changed here, then shown.
  function set(changes) {
    Object.assign(view, changes);
    times = s.times(view);
    attention = s.attention(view);
    const full = s.full(view), most = Math.max(1e-12, ...attention);
    tokens.forEach((token, p) => {
      const share = full ? attention[p] / most : times.total[p] / (times.rows * s.tokens[p]);
      token.className = `s${s.bounds.filter((bound) => share >= bound).length}`;
    });
    $("shade").textContent = s.shades[full ? 1 : 0];
    $("sentence").textContent = s.sentences[view.head + 1][view.layer + 1][view.query + 1];
    if (here >= 0) tell();
  }

  // As token() in words.py.
  function tell() {
    const most = times.rows * s.tokens[here], all = s.tokens[here];
    const name = `${s.names[here]}${all > 1 ? ` (${all} tokens)` : ""}, line ${line[here]}`;
    const spent = view.head < 0 ? `, ${percent(attention[here])} of the attention` : "";
    $("token").textContent =
      `${name}: selected ${times.total[here]} times of ${most} (${percent(times.total[here] / most)})${spent}.`;
  }

  // One token takes the Tab key, the arrow keys go on from there.
  function walk(to) {
    tokens[Math.max(0, here)].tabIndex = -1;
    here = to;
    tokens[here].tabIndex = 0;
    tokens[here].focus();
    tell();
  }

  for (const [id, names] of [["query", s.queries], ["layer", s.layers], ["head", s.heads]]) {
    names.forEach((name, n) => $(id).add(new Option(name, n - 1)));
    $(id).disabled = names.length === 1;
    $(id).addEventListener("change", () => set({ [id]: Number($(id).value) }));
  }
  $("passage").addEventListener("click", (event) => {
    const to = tokens.indexOf(event.target.closest("code span"));
    if (to >= 0) walk(to);
  });
  $("passage").addEventListener("focusin", (event) => {
    if (here < 0) walk(tokens.indexOf(event.target));
  });
  $("passage").addEventListener("keydown", (event) => {
    const rows = [...document.querySelectorAll("#passage li")].filter((row) => row.querySelector("code span"));
    const row = rows.indexOf(tokens[Math.max(0, here)].closest("li"));
    const first = (n) => tokens.indexOf(rows[clamp(n, 0, rows.length - 1)].querySelector("code span"));
    const moves = { ArrowLeft: () => here - 1, ArrowRight: () => here + 1, ArrowUp: () => first(row - 1),
      ArrowDown: () => first(row + 1), Home: () => 0, End: () => tokens.length - 1 };
    if (!(event.key in moves)) return;
    walk(clamp(moves[event.key](), 0, tokens.length - 1));
    event.preventDefault();
  });
  if (tokens.length) tokens[0].tabIndex = 0;
  document.documentElement.classList.add("live");
  set({});
}

// Without it, as without JavaScript, the page stays what Python wrote, and says so.
if ("DecompressionStream" in window) start(unpack(await inflate($("numbers").textContent)));
