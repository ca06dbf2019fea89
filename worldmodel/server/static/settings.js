// What a visitor likes, kept in this browser, and the dialog in which it is changed.

import { iconButton, make } from "./dom.js";

const KEY = "worldmodel.settings";
const DEFAULTS = { details: false, panels: true, touch: "auto", invert: false, sensitivity: 1, quality: 85, speed: null };

const SWITCHES = [
  ["details", "Figures over the picture", "Frames a second, latency, time of a step, memory"],
  ["panels", "Map and memory", "Where you walked, and what the model still knows of it"],
  ["invert", "Upside-down look", "Up looks down, for mouse, stick and gamepad"],
];

export class Settings {
  /** @param {function(string)} onChange called with the name of what has changed */
  constructor(onChange) {
    this.onChange = onChange;
    this.values = { ...DEFAULTS, ...read() };
  }

  get(name) {
    return this.values[name];
  }

  set(name, value) {
    if (this.values[name] === value) return;
    this.values[name] = value;
    write(this.values);
    this.onChange(name);
  }

  /** Whether sticks are shown instead of keys. */
  get sticks() {
    return this.values.touch === "sticks" || (this.values.touch === "auto" && matchMedia("(pointer: coarse)").matches);
  }

  dialog() {
    const close = iconButton("close", "Close", () => dialog.close());
    const dialog = make("dialog", { class: "wm-dialog", "aria-label": "Settings" }, make("header", {}, make("h2", {}, "Settings"), close));
    for (const [name, title, about] of SWITCHES) {
      const box = make("input", { type: "checkbox", role: "switch", name });
      box.checked = this.values[name];
      box.addEventListener("change", () => this.set(name, box.checked));
      dialog.append(make("label", { class: "wm-setting" }, make("span", {}, title, make("small", {}, about)), box));
    }
    dialog.append(
      this.choice("touch", "On-screen controls", { auto: "As the device suggests", keys: "Keys", sticks: "Sticks" }),
      this.range("sensitivity", "Look speed", 0.25, 3, 0.25, (v) => `${v} ×`),
      this.range("quality", "Picture quality", 40, 95, 5, (v) => `${v} %`),
    );
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    return dialog;
  }

  choice(name, title, options) {
    const select = make("select", { name });
    for (const [value, text] of Object.entries(options)) select.append(make("option", { value }, text));
    select.value = this.values[name];
    select.addEventListener("change", () => this.set(name, select.value));
    return make("label", { class: "wm-setting" }, make("span", {}, title), select);
  }

  range(name, title, min, max, step, show) {
    const shown = make("output", {}, show(this.values[name]));
    const slider = make("input", { type: "range", name, min, max, step, value: this.values[name] });
    slider.addEventListener("input", () => {
      shown.textContent = show(Number(slider.value));
      this.set(name, Number(slider.value));
    });
    return make("label", { class: "wm-setting" }, make("span", {}, title, " ", shown), slider);
  }
}

// Storage may be forbidden in a frame; then the settings last as long as the page.
function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
    return Object.fromEntries(Object.entries(kept).filter(([name]) => name in DEFAULTS));
  } catch {
    return {};
  }
}

function write(values) {
  try {
    localStorage.setItem(KEY, JSON.stringify(values));
  } catch {
    return;
  }
}
