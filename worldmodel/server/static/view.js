// The picture with what lies over it, and the places around it that others fill: keys, toolbar, timeline, map, memory.

import { clock, make, megabytes, pretty } from "./dom.js";

const LABEL = "World view. Walk with W A S D, look with the arrow keys. Space pauses, Backspace goes back two seconds, Escape leaves.";

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

// Beside the sticks, what they cannot do.
const BESIDE_STICKS = { move: [["KeyR", "↥", "Rise"], ["KeyF", "↧", "Sink"]], look: [["KeyU", "↺", "Roll left"], ["KeyO", "↻", "Roll right"]] };

function keys(list) {
  return list.map(([code, cap, does]) => {
    const hint = make("span", { class: "wm-does" }, does);
    return make("button", { type: "button", class: "wm-key", "data-code": code, "aria-label": `${does} (${cap})`, title: does }, cap, hint);
  });
}

/** One stop for the Tab key; the arrow keys go from button to button. */
function roving(group) {
  const buttons = [...group.querySelectorAll("button")];
  const enter = (target) => buttons.forEach((button) => (button.tabIndex = button === target ? 0 : -1));
  enter(buttons[0]);
  group.addEventListener("focusin", (event) => buttons.includes(event.target) && enter(event.target));
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.code];
    if (!step) return;
    event.preventDefault();
    buttons.at((buttons.indexOf(event.target) + step) % buttons.length).focus();
  });
}

/** The view inside `element`; the returned functions change what it shows. */
export function buildView(element, base) {
  const style = new URL("wm-static/style.css", base).href;
  if (!document.querySelector(`link[href="${style}"]`)) document.head.append(make("link", { rel: "stylesheet", href: style }));

  const canvas = make("canvas", { class: "wm-canvas", role: "application", tabindex: "0", "aria-label": LABEL, width: "256", height: "256" });
  const peek = make("img", { class: "wm-peek", alt: "", hidden: "" });
  const meter = make("button", { type: "button", class: "wm-meter", "aria-label": "Figures", "aria-expanded": "false", hidden: "" });
  const hint = make("div", { class: "wm-hint", "aria-hidden": "true" });
  const making = make("span", {}, "");
  const curtain = make("div", { class: "wm-curtain", "aria-hidden": "true" }, make("span", { class: "wm-spinner" }), making);
  const note = make("div", { class: "wm-note" });
  const toast = make("div", { class: "wm-toast", role: "alert" });
  const notice = make("div", { class: "wm-notice", role: "status", hidden: "" });
  const stage = make("div", { class: "wm-stage" }, canvas, peek, meter, hint, curtain, notice, note, toast);
  const dock = make("div", { class: "wm-dock", role: "toolbar", "aria-label": "World" });
  const line = make("section", { class: "wm-timeline", "aria-label": "Timeline" });
  const move = make("div", { class: "wm-pad wm-pad-move", role: "group", "aria-label": "Walk" });
  const look = make("div", { class: "wm-pad wm-pad-look", role: "group", "aria-label": "Look" });
  const memory = make("section", { class: "wm-card wm-memory", "aria-label": "Memory" });
  const map = make("section", { class: "wm-card wm-way", "aria-label": "Map" });
  const status = make("p", { class: "wm-status", role: "status", "aria-live": "polite" });
  element.classList.add("wm");
  element.replaceChildren(make("div", { class: "wm-play" }, stage, dock, status, line, move, look, memory, map));

  const view = { canvas, stage, dock, line, map, memory, meter, pads: element, move, look, onResume: null, onDrop: null };
  const fine = matchMedia("(pointer: fine)").matches;

  function showHint() {
    const locked = document.pointerLockElement === canvas;
    const focused = document.activeElement === canvas;
    let text = fine ? "Click to walk" : "Drag the picture to look around";
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
  view.curtain = (on, text = "Making the world") => {
    if (on) making.textContent = text;
    curtain.classList.toggle("wm-curtain-on", on);
  };
  view.controls = (sticks) => {
    move.replaceChildren(...keys(sticks ? BESIDE_STICKS.move : PADS.move));
    look.replaceChildren(...keys(sticks ? BESIDE_STICKS.look : PADS.look));
    for (const pad of [move, look]) roving(pad);
    if (sticks) move.prepend(sticks.walk), look.append(sticks.look);
    element.classList.toggle("wm-thumbs", Boolean(sticks));
  };
  view.panels = (on) => element.classList.toggle("wm-plain", !on);
  view.peek = (url, ago) => {
    peek.hidden = !url;
    if (url) [peek.src, peek.alt] = [url, `What was seen ${ago}`];
  };
  view.figures = ({ fps, latency, server, memory: kept, seconds, details }) => {
    const rest = fps < 0.5 ? "at rest" : `${fps.toFixed(0)} fps`;
    const rows = [rest + (latency === null ? "" : ` · ${latency.toFixed(0)} ms`)];
    if (details && server) {
      rows.push(`step ${server.step_ms.toFixed(0)} ms · encode ${server.encode_ms.toFixed(1)} ms · network ${server.latency_ms.toFixed(0)} ms`);
      rows.push(`picture ${server.quality} % · ${server.dropped} skipped · ${clock(seconds)} walked`);
      if (kept) rows.push(`memory ${kept.tokens} tokens · ${megabytes(kept.bytes)}`);
      if (server.memory_bytes) rows.push(`world ${megabytes(server.memory_bytes)}`);
    }
    meter.replaceChildren(...rows.map((row) => make("span", {}, row)));
    meter.hidden = false;
    meter.title = "Frames a second, and the time from a key to its first frame";
    meter.setAttribute("aria-expanded", String(details));
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
  view.toast = (text, good = false) => {
    toast.textContent = text;
    toast.classList.toggle("wm-toast-good", good);
    toast.classList.add("wm-toast-on");
    if (!good) view.curtain(false);
    clearTimeout(view.toastTimer);
    view.toastTimer = setTimeout(() => toast.classList.remove("wm-toast-on"), 6000);
  };
  /** Something that the server wants to be known about this world; it stays until it is put away. */
  view.notice = (text) => {
    if (notice.dataset.text === (text ?? "")) return;
    notice.dataset.text = text ?? "";
    notice.hidden = !text;
    const button = make("button", { type: "button" }, "Got it");
    button.addEventListener("click", () => (notice.hidden = true));
    notice.replaceChildren(...(text ? [make("span", {}, text), button] : []));
  };
  view.world = ({ gallery, image, paused, loading, notice: text }) => {
    if (loading) view.curtain(true);
    else view.curtain(false);
    view.notice(text);
    const place = gallery ? pretty(gallery) : image ? "your picture" : "a new world";
    if (paused) view.note("Paused", "", { label: "Continue", act: () => view.onResume?.() }, { light: true });
    else view.note(null);
    if (!paused) view.say(loading ? `Making ${place}.` : `Walking in ${place}.`);
  };
  return view;
}
