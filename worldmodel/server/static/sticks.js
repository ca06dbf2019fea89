// Two on-screen sticks for thumbs: the left one walks, the right one looks. Between them, buttons to rise and sink.

import { make } from "./dom.js";

const DEAD = 0.25; // of the radius
const DIRECTIONS = [
  ["KeyW", 0, -1],
  ["KeyS", 0, 1],
  ["KeyA", -1, 0],
  ["KeyD", 1, 0],
];
const LOOK_DEGREES_PER_S = 45;

/** Keys that walk where a stick points: [x, y] in -1..1, y down. Two of them on a diagonal. */
export function walkKeys([x, y], dead = DEAD) {
  const length = Math.hypot(x, y);
  if (length < dead) return [];
  return DIRECTIONS.filter(([, dx, dy]) => (x * dx + y * dy) / length > 0.38).map(([code]) => code);
}

/** Degrees [right, down] that a look stick turns in `seconds`; gentle near the middle. */
export function lookDegrees([x, y], seconds, dead = DEAD) {
  const ease = (v) => (Math.abs(v) < dead ? 0 : Math.sign(v) * ((Math.abs(v) - dead) / (1 - dead)) ** 1.5);
  return [x, y].map((v) => ease(v) * LOOK_DEGREES_PER_S * seconds);
}

export class Sticks {
  /** @param {Controls} controls what the sticks steer */
  constructor(controls) {
    this.controls = controls;
    this.walk = stick("Walk", "Walk: drag", (at) => controls.hold("stick", walkKeys(at)));
    this.look = stick("Look", "Look: drag", (at) => this.turn(at));
  }

  turn(at) {
    this.direction = at;
    if (!at[0] && !at[1]) return;
    this.request ??= requestAnimationFrame((now) => this.turning(now, now));
  }

  turning(now, before) {
    this.request = null;
    const [right, down] = lookDegrees(this.direction, Math.min(0.1, (now - before) / 1000));
    if (right || down) this.controls.turn(right, down);
    if (this.direction[0] || this.direction[1]) this.request = requestAnimationFrame((next) => this.turning(next, now));
  }
}

function stick(name, title, moved) {
  const knob = make("span", { class: "wm-knob" });
  const base = make("div", { class: "wm-stick", role: "img", "aria-label": title, "data-stick": name.toLowerCase() }, knob, make("small", {}, name));
  let finger = null;
  const point = (x, y) => {
    knob.style.translate = `${x * 50}% ${y * 50}%`;
    moved([x, y]);
  };
  const follow = (event) => {
    const box = base.getBoundingClientRect();
    const radius = box.width / 2;
    const [x, y] = [(event.clientX - box.left) / radius - 1, (event.clientY - box.top) / radius - 1];
    const length = Math.max(1, Math.hypot(x, y));
    point(x / length, y / length);
  };
  base.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    finger = event.pointerId;
    base.setPointerCapture(finger);
    base.classList.add("wm-held");
    follow(event);
  });
  base.addEventListener("pointermove", (event) => event.pointerId === finger && follow(event));
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    base.addEventListener(end, (event) => {
      if (event.pointerId !== finger) return;
      finger = null;
      base.classList.remove("wm-held");
      point(0, 0);
    });
  }
  base.addEventListener("contextmenu", (event) => event.preventDefault());
  return base;
}
