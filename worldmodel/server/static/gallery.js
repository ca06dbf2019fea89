// Pictures to start in: your own first, then what the server offers.

import { make, pretty } from "./dom.js";

export class Gallery {
  constructor(element, base, { onPick, onFile }) {
    this.element = make("div", { class: "wm-strip", role: "group", "aria-label": "Worlds to start in" });
    this.base = base;
    this.onPick = onPick;
    this.marked = null;
    this.input = make("input", { type: "file", accept: "image/jpeg,image/png,image/webp", hidden: "", "aria-label": "Your picture" });
    this.input.addEventListener("change", () => {
      if (this.input.files[0]) onFile(this.input.files[0]);
      this.input.value = "";
    });
    const button = make("button", { type: "button", class: "wm-tile wm-upload" }, make("span", { "aria-hidden": "true" }, "+"), "Your picture");
    button.addEventListener("click", () => this.input.click());
    this.element.append(button, this.input);
    element.classList.add("wm");
    element.append(make("h2", { class: "wm-title" }, "Start somewhere else"), this.element);
    this.load();
  }

  async load() {
    try {
      const response = await fetch(new URL("api/v1/gallery", this.base));
      for (const entry of await response.json()) {
        const tile = this.tile(entry.name, pretty(entry.name), new URL(entry.thumbnail, this.base), entry.prompt);
        tile.addEventListener("click", () => this.onPick(entry.name));
        this.element.append(tile);
      }
      this.mark(this.marked);
    } catch {
      this.timer = setTimeout(() => this.load(), 3000); // the server is not back yet
    }
  }

  tile(name, caption, source, title) {
    const picture = make("img", { src: source, alt: "", loading: "lazy", draggable: "false" });
    return make("button", { type: "button", class: "wm-tile", "data-name": name, title, "aria-pressed": "false" }, picture, make("span", {}, caption));
  }

  addUpload(id, file) {
    this.element.querySelector(".wm-own")?.remove();
    const tile = this.tile(id, "yours", URL.createObjectURL(file), file.name);
    tile.classList.add("wm-own");
    tile.addEventListener("click", () => this.onPick(null, id));
    this.element.querySelector(".wm-upload").after(tile);
  }

  mark(gallery, image = null) {
    this.marked = gallery ?? image;
    for (const tile of this.element.querySelectorAll(".wm-tile[data-name]")) {
      tile.setAttribute("aria-pressed", String(tile.dataset.name === this.marked));
    }
  }

  destroy() {
    clearTimeout(this.timer);
    this.element.parentElement?.replaceChildren();
  }
}
