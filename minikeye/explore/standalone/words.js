// What the page says. It says it as minikeye does: reads() is that of explore/widget/view.py, percent() in numbers.js that
// of explore/words.py; tests compare the sentences letter by letter. Texts that depend on no range of frames are not made
// here: Python sends them.

// The number of the first of the largest.
function largest(values) {
  let best = 0;
  for (let n = 1; n < values.length; n++) if (values[n] > values[best]) best = n;
  return best;
}

// The frames with most keys, and the one of them that gets most attention; the first of equals.
function strongest(counts, mass) {
  const most = counts[largest(counts)];
  const tied = [...counts.keys()].filter((n) => counts[n] === most);
  return { most, tied, top: tied[largest(tied.map((n) => mass[n]))] };
}

// What a layer and a query read of the frames first..last.
function reads(s, { layer, query, first, last }) {
  const counts = s.counts(layer, query).subarray(first, last + 1);
  const mass = s.mass(layer, query).subarray(first, last + 1);
  const total = s.keys[layer][query];
  const inside = counts.reduce((sum, n) => sum + n, 0);
  const frame = (n) => `the frame at ${s.times[n]}`;
  const range = `the ${last - first + 1} frames from ${s.times[first]} to ${s.times[last]}`;
  const place = last > first ? range : frame(first);
  if (!inside) return `${total === 1 ? "Its only key does not lie" : `None of its ${total} keys lies`} in ${place}.`;
  const share = percent(inside / total);
  const sum = `${inside} of its ${total} keys (${share}) ${inside === 1 ? "lies" : "lie"} in ${place}`;
  if (s.readsAll[query]) {
    const most = largest(mass);
    const every = "it reads every key that it sees, nothing is selected";
    return `${sum}: ${every}. The frame at ${s.times[first + most]} gets most attention: ${percent(mass[most])}.`;
  }
  if (counts.length === 1) return `${sum}, with ${percent(mass[0])} of the attention.`;
  const { most, tied, top } = strongest(counts, mass);
  const where = frame(first + top);
  const attention = percent(mass[top]);
  if (tied.length === 1) return `${sum}, most in ${where}: ${most} with ${attention} of the attention.`;
  const each = `${tied.length} frames have most, ${most} each`;
  return `${sum}; ${each}, and of these ${where} gets most attention, ${attention}.`;
}

// What kind of picture the canvas holds, for readers who do not see it.
function picture(s, { layer }) {
  const [layers, , frames] = s.shape;
  const size = `${layers} layer${layers > 1 ? "s" : ""} by ${frames} frame${frames > 1 ? "s" : ""}`;
  const bars = `below, bars for layer ${s.layers[layer]}: its keys upwards, its attention downwards`;
  return `A heat map of ${size}, lighter for more; ${bars}. The frames below say how many.`;
}

// A frame's number beside its picture: "12 keys", or its attention where every key is read.
function amount(s, { layer, query }, frame) {
  if (s.readsAll[query]) return percent(s.mass(layer, query)[frame]);
  const keys = s.counts(layer, query)[frame];
  return `${keys || "no"} key${keys === 1 ? "" : "s"}`;
}
