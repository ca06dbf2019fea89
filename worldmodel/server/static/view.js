// What is seen: the canvas with its notes and buttons, and the strip of start pictures. No networking but the gallery list.

const LABEL = "World view. Click, then walk with W A S D and look with the arrow keys. Escape leaves.";

// [code, what is on the button, what it does]
const PADS = {
  move: [
    ["KeyR", "R", "Rise"],
    ["KeyW", "W", "Forward"],
    ["KeyF", "F", "Sink"],
    ["KeyA", "A", "Left"],
    ["KeyS", "S", "Back"],
    ["KeyD", "D", "Right"],
  ],
  look: [
    ["KeyU", "U", "Roll left"],
    ["ArrowUp", "↑", "Look up"],
    ["KeyO", "O", "Roll right"],
    ["ArrowLeft", "←", "Turn left"],
    ["ArrowDown", "↓", "Look down"],
    ["ArrowRight", "→", "Turn right"],
  ],
};

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function pad(kind, title) {
  const keys = PADS[kind].map(([code, cap, does]) => {
    const hint = make("span", { class: "wm-does" }, does);
    return make("button", { type: "button", class: "wm-key", "data-code": code, "aria-label": `${does} (${cap})`, title: does }, cap, hint);
  });
  return make("div", { class: `wm-pad wm-pad-${kind}`, role: "group", "aria-label": title }, ...keys);
}

/** The view inside `element`; the returned functions change what it shows. */
export function buildView(element, base) {
  const style = new URL("wm-static/style.css", base).href;
  if (!document.querySelector(`link[href="${style}"]`)) document.head.append(make("link", { rel: "stylesheet", href: style }));

  const canvas = make("canvas", { class: "wm-canvas", role: "application", tabindex: "0", "aria-label": LABEL, width: "256", height: "256" });
  const meter = make("div", { class: "wm-meter", "aria-hidden": "true" });
  const hint = make("div", { class: "wm-hint", "aria-hidden": "true" });
  const curtain = make("div", { class: "wm-curtain", "aria-hidden": "true" }, make("span", { class: "wm-spinner" }), "Making the world");
  const note = make("div", { class: "wm-note" });
  const toast = make("div", { class: "wm-toast", role: "alert" });
  const full = make("button", { type: "button", class: "wm-full", title: "Full screen", "aria-label": "Full screen" });
  const stage = make("div", { class: "wm-stage" }, canvas, meter, full, hint, curtain, note, toast);
  const pads = make("div", { class: "wm-play" }, pad("move", "Walk"), stage, pad("look", "Look"));
  const status = make("p", { class: "wm-status", role: "status", "aria-live": "polite" });
  const strip = make("div", { class: "wm-strip", role: "group", "aria-label": "Worlds to start in" });
  element.classList.add("wm");
  element.replaceChildren(pads, status, strip);

  const view = { canvas, pads, strip, onResume: null, onDrop: null };
  const fine = matchMedia("(pointer: fine)").matches;

  function showHint() {
    const locked = document.pointerLockElement === canvas;
    const focused = document.activeElement === canvas;
    let text = fine ? "Click to walk" : "Touch the buttons to walk, drag to look";
    if (focused && fine) text = "WASD walk · arrows look · click again for mouse look · Esc leaves";
    if (locked) text = "Mouse looks around · Esc frees it";
    hint.textContent = text;
    hint.classList.remove("wm-fades");
    void hint.offsetWidth; // restart the animation
    hint.classList.toggle("wm-fades", focused || locked || !fine);
  }
  canvas.addEventListener("focus", showHint);
  canvas.addEventListener("blur", showHint);
  document.addEventListener("pointerlockchange", showHint);
  showHint();

  full.addEventListener("click", () => {
    if (document.fullscreenElement) document.exitFullscreen();
    else stage.requestFullscreen?.().catch(() => view.toast("Full screen is not allowed here."));
    canvas.focus({ preventScroll: true });
  });

  for (const name of ["dragenter", "dragover"]) {
    stage.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      stage.classList.add("wm-drop");
    });
  }
  for (const name of ["dragleave", "drop"]) stage.addEventListener(name, () => stage.classList.remove("wm-drop"));
  stage.addEventListener("drop", (event) => {
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    view.onDrop?.(file);
  });

  view.say = (text) => {
    if (status.textContent !== text) status.textContent = text;
  };
  view.size = (width, height) => element.style.setProperty("--wm-aspect", width / height);
  view.curtain = (on) => curtain.classList.toggle("wm-curtain-on", on);
  view.meter = ({ fps, latency }) => {
    meter.textContent = (fps < 0.5 ? "at rest" : `${fps.toFixed(0)} fps`) + (latency === null ? "" : ` · ${latency.toFixed(0)} ms`);
    meter.title = "Frames a second, and the time from a key to its first frame";
  };
  view.note = (title, text = "", button = null, { light = false, quiet = false } = {}) => {
    note.classList.toggle("wm-note-on", Boolean(title));
    note.classList.toggle("wm-note-light", light);
    if (!title) return note.replaceChildren();
    note.replaceChildren(make("strong", {}, title), make("span", {}, text));
    if (button) {
      const node = make("button", { type: "button" }, button.label);
      node.addEventListener("click", button.act);
      note.append(node);
    }
    if (!quiet) view.say(`${title}. ${text}`.trim());
  };
  view.toast = (text) => {
    toast.textContent = text;
    view.say(text);
    toast.classList.add("wm-toast-on");
    view.curtain(false);
    clearTimeout(view.toastTimer);
    view.toastTimer = setTimeout(() => toast.classList.remove("wm-toast-on"), 6000);
  };
  view.world = ({ gallery, image, paused, loading }) => {
    view.curtain(loading);
    const place = gallery ? pretty(gallery) : image ? "your picture" : "a new world";
    if (paused) view.note("Paused", "", { label: "Continue", act: () => view.onResume?.() }, { light: true });
    else view.note(null);
    if (!paused) view.say(loading ? `Making ${place}.` : `Walking in ${place}.`);
  };
  return view;
}

const pretty = (name) => name.replace(/[-_]+/g, " ");

/** The pictures below the view: upload first, then what the server offers. */
export class Strip {
  constructor(element, base, { onPick, onFile }) {
    this.element = element;
    this.base = base;
    this.onPick = onPick;
    this.marked = null;
    this.input = make("input", { type: "file", accept: "image/jpeg,image/png,image/webp", hidden: "" });
    this.input.addEventListener("change", () => {
      if (this.input.files[0]) onFile(this.input.files[0]);
      this.input.value = "";
    });
    const button = make("button", { type: "button", class: "wm-tile wm-upload" }, make("span", { "aria-hidden": "true" }, "+"), "Your picture");
    button.addEventListener("click", () => this.input.click());
    element.append(button, this.input);
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
      setTimeout(() => this.load(), 3000); // the server is not back yet
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
}
