// Draws which tokens of a picture were kept, over the picture.

const SVG = "http://www.w3.org/2000/svg";
const ENOUGH = .95; // of what all views cover: tiles may miss a strip of padding's width

function covered([left, top, right, bottom]) {
  const side = (low, high) => Math.max(0, Math.min(1, high) - Math.max(0, low));
  return side(left, right) * side(top, bottom);
}

function density({ box: [left, top, right, bottom], rows, columns }) {
  return rows * columns / ((right - left) * (bottom - top));
}

// The finest of the views that cover the picture, or the coarsest of all.
export function chooseView(views, overview) {
  const by = [...views].sort((one, other) => density(one) - density(other));
  if (overview) return by[0];
  const most = Math.max(...views.map((view) => covered(view.box)));
  return by.filter((view) => covered(view.box) >= ENOUGH * most).at(-1);
}

export function isCut(views) {
  return Math.max(...views.map((view) => covered(view.box))) < .999;
}

function squares(tokens, columns, inset) {
  const side = 1 - 2 * inset;
  return tokens.map((token) => {
    const row = Math.floor(token / columns);
    return `M${token % columns + inset} ${row + inset}h${side}v${side}h-${side}z`;
  }).join("");
}

function add(parent, name, attributes) {
  const made = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// An svg of a picture of the server's list: {width, height, views, stage1, stage2}.
export function drawKept(picture, overview) {
  const { width, height, views, stage1, stage2 } = picture;
  const { box: [left, top, right, bottom], rows, columns, first } = chooseView(views, overview);
  const own = (tokens) => tokens.map((token) => token - first).filter((token) => token >= 0 && token < rows * columns);
  const kept = new Set(own(stage2));
  const entered = own(stage1);
  const all = new Set(entered);
  const inside = entered.filter((token) => !kept.has(token));
  const before = Array.from({ length: rows * columns }, (_, token) => token).filter((token) => !all.has(token));

  const counts = `${rows * columns} tokens, ${all.size} after stage 1, ${kept.size} after stage 2`;
  const said = { class: "tokens", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": counts };
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries(said)) svg.setAttribute(key, value);
  const [x, y, wide, high] = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  if (isCut([{ box: [left, top, right, bottom] }])) addOutside(svg, width, height, x, y, wide, high);
  const grid = add(svg, "g", { transform: `translate(${x} ${y}) scale(${wide / columns} ${high / rows})` });
  add(grid, "path", { class: "before", d: squares(before, columns, 0) });
  add(grid, "path", { class: "inside", d: squares(inside, columns, .05) });
  add(grid, "path", { class: "kept", d: squares([...kept], columns, .05) });
  return svg;
}

// What no token covers, striped.
function addOutside(svg, width, height, x, y, wide, high) {
  const around = `M0 0H${width}V${height}H0zM${x} ${y}V${y + high}H${x + wide}V${y}z`;
  add(svg, "path", { class: "outside", d: around });
  const name = `outside-${addOutside.made = (addOutside.made ?? 0) + 1}`;
  add(add(svg, "clipPath", { id: name }), "path", { d: around });
  const step = Math.max(width, height) / 40;
  let stripes = "";
  for (let at = step; at < width + height; at += step) stripes += `M${at} 0L0 ${at}`;
  add(svg, "path", { class: "stripes", d: stripes, "clip-path": `url(#${name})` });
}
