// The way from above, and what the model still knows of it: each remembered moment as a cone of sight, coloured by how much of it is left.

import { make } from "./dom.js";

export const COLOURS = { 1: "#6fd3c1", 2: "#62a8e8", 4: "#a78bf0", 8: "#e0729c" };
export const colour = (factor) => COLOURS[factor] ?? COLOURS[8];
const REACH = 0.55; // length of a cone of sight in units of the map's margin
const LEAST = 8; // steps that the map is wide at least

/** Position [x, z] and direction [x, z] on the ground of a pose: three rows of a camera-to-world matrix. */
export function fromAbove(pose) {
  const [x, z] = [pose[2], pose[10]];
  const length = Math.hypot(x, z) || 1;
  return { at: [pose[3], pose[11]], to: [x / length, z / length] };
}

export class PathMap {
  constructor(element) {
    this.canvas = make("canvas", { class: "wm-map", role: "img", "aria-label": "Map of your way" });
    element.append(make("h3", {}, "Map"), this.canvas);
    this.path = [];
    this.tiles = [];
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** @param {{pose: number[]}[]} moments the way so far @param {{pose: number[], factor: number}[]} tiles what is remembered */
  show(moments, tiles) {
    this.path = moments.map((moment) => fromAbove(moment.pose));
    this.tiles = tiles.map((tile) => ({ ...fromAbove(tile.pose), factor: tile.factor }));
    this.request ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.request = null;
    const { canvas, path, tiles } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
    if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);

    const points = [...path, ...tiles].map((p) => p.at);
    const [xs, zs] = [points.map((p) => p[0]), points.map((p) => p[1])];
    const middle = points.length ? [(Math.min(...xs) + Math.max(...xs)) / 2, (Math.min(...zs) + Math.max(...zs)) / 2] : [0, 0];
    const span = points.length ? Math.max(LEAST, Math.max(...xs) - Math.min(...xs), Math.max(...zs) - Math.min(...zs)) : LEAST;
    const unit = (0.62 * Math.min(width, height)) / span;
    const place = ([x, z]) => [width / 2 + (x - middle[0]) * unit, height / 2 - (z - middle[1]) * unit];

    this.grid(context, width, height, unit, place);
    const reach = REACH * 0.28 * Math.min(width, height);
    for (const tile of tiles) this.cone(context, place(tile.at), tile.to, tile.factor, reach);

    context.beginPath();
    for (const { at } of path) context.lineTo(...place(at));
    context.strokeStyle = "rgb(255 255 255 / 45%)";
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
    for (const tile of tiles) {
      context.beginPath();
      context.arc(...place(tile.at), 2, 0, 7);
      context.fillStyle = colour(tile.factor);
      context.fill();
    }
    if (path.length) this.walker(context, place(path.at(-1).at), path.at(-1).to);
    canvas.setAttribute("aria-label", `Map of your way: ${path.length} moments, ${tiles.length} of them remembered`);
  }

  grid(context, width, height, unit, place) {
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((s) => s * unit > 18) ?? 1000;
    const [x0, y0] = place([0, 0]);
    context.beginPath();
    for (let x = x0 % (step * unit); x < width; x += step * unit) context.moveTo(x, 0), context.lineTo(x, height);
    for (let y = y0 % (step * unit); y < height; y += step * unit) context.moveTo(0, y), context.lineTo(width, y);
    context.strokeStyle = "rgb(255 255 255 / 5%)";
    context.lineWidth = 1;
    context.stroke();
  }

  cone(context, [x, y], [dx, dz], factor, reach) {
    const angle = Math.atan2(-dz, dx);
    context.beginPath();
    context.moveTo(x, y);
    context.arc(x, y, reach, angle - 0.45, angle + 0.45);
    context.closePath();
    context.globalAlpha = factor === 1 ? 0.22 : 0.12;
    context.fillStyle = colour(factor);
    context.fill();
    context.globalAlpha = 1;
  }

  walker(context, [x, y], [dx, dz]) {
    context.save();
    context.translate(x, y);
    context.rotate(Math.atan2(-dz, dx));
    context.beginPath();
    context.moveTo(8, 0);
    context.lineTo(-5, 5);
    context.lineTo(-2.5, 0);
    context.lineTo(-5, -5);
    context.closePath();
    context.fillStyle = "#fff";
    context.shadowColor = "#000";
    context.shadowBlur = 4;
    context.fill();
    context.restore();
  }
}
