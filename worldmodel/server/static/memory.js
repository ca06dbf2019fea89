// What the model remembers, as pictures as coarse as the memory of them: a moment pooled 4 x 4 is shown in blocks of 4 x 4 cells.

import { make, megabytes } from "./dom.js";
import { colour } from "./map.js";

const CELLS = 16; // across a picture that is kept whole

export class MemoryView {
  constructor(element, base) {
    this.base = base;
    this.tiles = make("div", { class: "wm-tiles", role: "img", "aria-label": "Nothing is remembered yet" });
    this.legend = make("p", { class: "wm-legend" });
    element.append(make("h3", {}, "Memory"), this.tiles, this.legend);
    this.nodes = new Map(); // latent -> its node
    this.pictures = new Map(); // address -> promise of an image
  }

  /** @param {object} memory a `memory` message @param {function(number): string|undefined} pictureOf thumbnail after so many chunks */
  show(memory, pictureOf) {
    const kept = new Set();
    let before = null;
    for (const tile of memory.tiles) {
      kept.add(tile.latent);
      const node = this.node(tile, pictureOf(tile.at));
      if (before ? before.nextSibling !== node : this.tiles.firstChild !== node) before ? before.after(node) : this.tiles.prepend(node);
      before = node;
    }
    for (const [latent, node] of this.nodes) {
      if (kept.has(latent)) continue;
      node.remove();
      this.nodes.delete(latent);
    }
    const counts = new Map();
    for (const { factor } of memory.tiles) counts.set(factor, (counts.get(factor) ?? 0) + 1);
    const parts = [...counts].sort((a, b) => a[0] - b[0]).map(([factor, n]) => {
      const dot = make("i", { style: `background:${colour(factor)}` });
      return make("span", { title: factor === 1 ? "kept whole" : `pooled ${factor} × ${factor}` }, dot, factor === 1 ? `${n} whole` : `${n} at 1/${factor}`);
    });
    this.legend.replaceChildren(...parts, make("span", {}, `${memory.tokens} tokens · ${megabytes(memory.bytes)}`));
    this.tiles.setAttribute("aria-label", `${memory.tiles.length} moments remembered: ${parts.map((part) => part.textContent).join(", ")}`);
  }

  node(tile, address) {
    let node = this.nodes.get(tile.latent);
    if (!node) this.nodes.set(tile.latent, (node = make("canvas", { class: "wm-cell" })));
    if (node.dataset.shown === `${tile.factor} ${address}`) return node;
    node.dataset.shown = `${tile.factor} ${address}`;
    node.style.borderColor = colour(tile.factor);
    node.width = node.height = Math.max(1, Math.round(CELLS / tile.factor));
    if (address) this.paint(node, new URL(address, this.base).href, node.dataset.shown);
    return node;
  }

  async paint(node, url, shown) {
    if (!this.pictures.has(url)) this.pictures.set(url, load(url));
    if (this.pictures.size > 400) this.pictures.delete(this.pictures.keys().next().value);
    const image = await this.pictures.get(url);
    if (!image || node.dataset.shown !== shown) return;
    const context = node.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, node.width, node.height);
  }
}

async function load(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    return image;
  } catch {
    return null;
  }
}
