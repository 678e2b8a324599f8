// The page: numbers that Python packed, controls, and what they change. Text from outside is only ever textContent.

// Undo pack.py: a header, then planes of bytes, first of the keys, then of millionths of the attention.
async function unpack(code) {
  const { header: s, bytes } = await inflate(code);
  const [layers, queries, frames] = s.shape, cells = layers * queries * frames;
  const number = (n, plane) => bytes[n + plane] | (bytes[n + plane + cells] << 8) | (bytes[n + plane + 2 * cells] << 16);
  const counts = Int32Array.from({ length: cells }, (_, n) => number(n, 0));
  const mass = Float32Array.from({ length: cells }, (_, n) => number(n, 3 * cells) / 1e6);
  const row = (all, layer, query) => all.subarray((layer * queries + query) * frames, (layer * queries + query + 1) * frames);
  s.counts = (layer, query) => row(counts, layer, query);
  s.mass = (layer, query) => row(mass, layer, query);
  s.shares = (layer, query) => Float64Array.from(s.counts(layer, query), (n) => n / Math.max(1, s.keys[layer][query]));
  s.shown = (layer, query) => (s.readsAll[query] ? s.mass(layer, query) : s.shares(layer, query));
  s.most = (query) => Math.max(...s.layers.map((_, layer) => s.shown(layer, query)).map((v) => v[largest(v)]));
  return s;
}

const $ = (id) => document.getElementById(id);
const clamp = (n, low, high) => Math.min(high, Math.max(low, n));
const shadeOf = (s, share, most) => (most > 0 ? (share / most) ** s.gamma : 0);
const colourOf = (s, shade) => s.colours[Math.round(shade * (s.colours.length - 1))];

function start(s) {
  const frames = s.shape[2];
  const view = { ...s.start, first: 0, last: frames - 1 };
  const film = [...document.querySelectorAll("#film button")];
  let place, timer;

  // Everything that can be changed is changed here, then shown.
  function set(changes) {
    Object.assign(view, changes);
    showControls();
    $("settings").textContent = s.settings[view.query][view.layer];
    $("reads").textContent = reads(s, view);
    $("findings").textContent = s.findings[view.query][view.layer];
    place = draw($("map"), s, view);
    $("map").setAttribute("aria-label", picture(s, view));
    showFilm();
    showGauges();
  }

  function showControls() {
    const name = `layer ${s.layers[view.layer]}`;
    for (const [id, value, words] of [["layer", view.layer, name], ["first", view.first, s.times[view.first]],
      ["last", view.last, s.times[view.last]]]) {
      $(id).value = value;
      $(id).setAttribute("aria-valuetext", words);
      $(`${id}-words`).textContent = words;
    }
    document.querySelectorAll("#queries input")[view.query].checked = true;
    $("all").disabled = view.first === 0 && view.last === frames - 1;
  }

  function showFilm() {
    const shown = s.shown(view.layer, view.query), most = s.most(view.query), part = view.last - view.first + 1 < frames;
    const { top } = strongest(shown, s.mass(view.layer, view.query));
    film.forEach((button, n) => {
      const shade = shadeOf(s, shown[n], most), inside = view.first <= n && n <= view.last;
      button.style.setProperty("--shade", shade);
      button.style.setProperty("--colour", colourOf(s, shade));
      button.classList.toggle("out", !inside);
      button.classList.toggle("most", n === top && shown[n] > 0);
      button.setAttribute("aria-pressed", inside && part);
      button.querySelector(".amount").textContent = amount(s, view, n);
    });
  }

  function showGauges() {
    const counts = s.counts(view.layer, view.query), keys = s.keys[view.layer][view.query];
    const all = counts.reduce((sum, n) => sum + n, 0);
    const inside = counts.subarray(view.first, view.last + 1).reduce((sum, n) => sum + n, 0);
    const parts = [[inside, "in the frames chosen"], [all - inside, "in other frames"], [keys - all, "in no frame"]];
    const words = parts.filter(([n], which) => n || which !== 1).map(([n, where]) => `${n} ${where}`);
    $("lie").textContent = `${keys} keys: ${words.join(", ")}`;
    [...$("lie-bar").children].forEach((part, n) => (part.style.width = `${(100 * parts[n][0]) / Math.max(1, keys)}%`));
    const kept = s.kept[view.layer][view.query];
    $("held").textContent = `dense attention held by these keys: ${percent(kept)}`;
    $("held-bar").firstElementChild.style.width = `${100 * kept}%`;
  }

  // That frame alone; all of them where it is alone already. With Shift, the range up to it.
  function pick(frame, longer) {
    if (longer) set({ first: Math.min(view.first, frame), last: Math.max(view.last, frame) });
    else if (view.first === frame && view.last === frame) set({ first: 0, last: frames - 1 });
    else set({ first: frame, last: frame });
  }

  // One frame takes the Tab key, the arrow keys go on from there.
  function walk(frame, focus = true) {
    film.forEach((button, n) => (button.tabIndex = n === frame ? 0 : -1));
    if (focus) film[frame].focus();
  }

  function play(on) {
    clearInterval(timer);
    $("play").setAttribute("aria-pressed", on);
    if (!on) return;
    if (view.layer === s.layers.length - 1) set({ layer: 0 });
    timer = setInterval(() => {
      set({ layer: view.layer + 1 });
      if (view.layer === s.layers.length - 1) play(false);
    }, 1000);
  }

  offerQueries(s, (query) => set({ query }));
  for (const [id, top] of [["layer", s.layers.length - 1], ["first", frames - 1], ["last", frames - 1]]) {
    $(id).max = top;
    $(id).disabled = top === 0;
  }
  $("layer").addEventListener("input", () => set({ layer: Number($("layer").value) }));
  $("first").addEventListener("input", () => {
    const first = Number($("first").value);
    set({ first, last: Math.max(first, view.last) });
  });
  $("last").addEventListener("input", () => {
    const last = Number($("last").value);
    set({ last, first: Math.min(last, view.first) });
  });
  $("all").addEventListener("click", () => {
    set({ first: 0, last: frames - 1 });
    $("first").focus(); // the button is off now, and what is off cannot hold the focus
  });
  $("play").disabled = s.layers.length === 1;
  $("play").addEventListener("click", () => play($("play").getAttribute("aria-pressed") !== "true"));

  const under = (event) => {
    const box = $("map").getBoundingClientRect();
    return at(s, place, event.clientX - box.left, event.clientY - box.top, view);
  };
  $("map").addEventListener("click", (event) => {
    const hit = under(event);
    if (!hit) return;
    if (hit.layer !== null && hit.layer !== view.layer) set({ layer: hit.layer, first: hit.frame, last: hit.frame });
    else pick(hit.frame, event.shiftKey);
  });
  $("map").addEventListener("pointermove", (event) => {
    const hit = under(event);
    const there = hit && { ...view, layer: hit.layer ?? view.layer };
    const mass = hit && percent(s.mass(there.layer, view.query)[hit.frame]);
    const keys = hit && (s.readsAll[view.query] ? "" : `${amount(s, there, hit.frame)}, `);
    $("hint").textContent = hit
      ? `layer ${s.layers[there.layer]}, ${s.times[hit.frame]}: ${keys}${mass} of the attention` : HINT;
  });
  $("map").addEventListener("pointerleave", () => ($("hint").textContent = HINT));

  film.forEach((button, n) => {
    button.disabled = false;
    button.addEventListener("click", (event) => {
      walk(n);
      pick(n, event.shiftKey);
    });
    button.addEventListener("keydown", (event) => {
      const across = film.filter((other) => other.offsetTop === film[0].offsetTop).length;
      const moves = { ArrowLeft: n - 1, ArrowRight: n + 1, ArrowUp: n - across, ArrowDown: n + across, Home: 0, End: frames - 1 };
      if (event.key in moves) walk(clamp(moves[event.key], 0, frames - 1));
      else if (event.shiftKey && (event.key === "Enter" || event.key === " ")) pick(n, true);
      else return;
      event.preventDefault();
    });
  });
  walk(0, false);
  document.documentElement.classList.add("live");
  set({});
  new ResizeObserver(() => (place = draw($("map"), s, view))).observe($("map").parentElement);
}

const HINT = $("hint").textContent;

// A radio button for each query: the arrow keys go from one to the next by themselves, Home and End are added.
function offerQueries(s, choose) {
  s.queries.forEach((name, n) => {
    const label = document.createElement("label"), input = document.createElement("input"), words = document.createElement("bdi");
    Object.assign(input, { type: "radio", name: "query", value: n, autocomplete: "off" });
    words.textContent = name;
    label.append(input, words);
    $("queries").append(label);
    input.addEventListener("change", () => choose(n));
  });
  const inputs = [...document.querySelectorAll("#queries input")];
  $("queries").addEventListener("keydown", (event) => {
    const to = { Home: 0, End: inputs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    inputs[to].focus();
    choose(to);
  });
}

// Without it, as without JavaScript, the page stays what Python wrote, and says so.
if ("DecompressionStream" in window) start(await unpack($("numbers").textContent));
