// What pages need to show numbers that Python packed: percent() is that of explore/words.py, inflate() undoes pack.py.

// Python rounds what lies in the middle to the even neighbour, toFixed away from zero. Both look at the exact number.
function rounded(value, digits) {
  const scaled = value * (digits ? 4 : 2); // exact; an odd whole number is where a tie can be
  const tie = Number.isInteger(scaled) && scaled % 2 === 1;
  if (!tie) return value.toFixed(digits);
  const low = digits ? Math.floor(value * 10) : Math.floor(value);
  return (digits ? (low + (low % 2)) / 10 : low + (low % 2)).toFixed(digits);
}

// 0.814 -> "81 %", 0.0625 -> "6.2 %"; never rounds something to nothing or almost all to all.
function percent(share) {
  const p = 100 * share;
  if (p > 0 && p < 0.1) return "<0.1 %";
  if (p >= 99.5 && p < 99.9999) return ">99 %";
  return p >= 9.95 || p === 0 ? `${rounded(p, 0)} %` : `${rounded(p, 1)} %`.replace(".0 ", " ");
}

// A header, and the bytes behind it.
async function inflate(code) {
  const zipped = Uint8Array.from(atob(code), (c) => c.charCodeAt(0));
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const start = 4 + new DataView(bytes.buffer).getUint32(0, true);
  return { header: JSON.parse(new TextDecoder().decode(bytes.subarray(4, start))), bytes: bytes.subarray(start) };
}
