// A gamepad: left stick walks, right stick looks, triggers rise and sink, shoulder buttons roll, Start pauses.

import { lookDegrees, walkKeys } from "./sticks.js";

const DEAD = 0.15;
const BUTTONS = { 4: "KeyU", 5: "KeyO", 6: "KeyF", 7: "KeyR", 12: "KeyW", 13: "KeyS", 14: "KeyA", 15: "KeyD" }; // standard mapping
const START = 9;

export class Gamepads {
  /** @param {{onPause: function(), onFound: function(string)}} handlers */
  constructor(controls, handlers) {
    this.controls = controls;
    this.handlers = handlers;
    this.stop = new AbortController();
    addEventListener("gamepadconnected", (event) => this.found(event.gamepad), { signal: this.stop.signal });
  }

  found(pad) {
    this.handlers.onFound(pad.id);
    this.request ??= requestAnimationFrame((now) => this.poll(now, now));
  }

  poll(now, before) {
    this.request = null;
    const pads = [...navigator.getGamepads()].filter((pad) => pad?.connected);
    const seconds = Math.min(0.1, (now - before) / 1000);
    const keys = new Set();
    let start = false;
    for (const pad of pads) {
      for (const code of walkKeys([pad.axes[0] ?? 0, pad.axes[1] ?? 0], DEAD)) keys.add(code);
      const [right, down] = lookDegrees([pad.axes[2] ?? 0, pad.axes[3] ?? 0], seconds, DEAD);
      if (right || down) this.controls.turn(right, down);
      for (const [index, code] of Object.entries(BUTTONS)) if (pad.buttons[index]?.pressed) keys.add(code);
      start ||= Boolean(pad.buttons[START]?.pressed);
    }
    this.controls.hold("gamepad", [...keys]);
    if (start && !this.started) this.handlers.onPause();
    this.started = start;
    if (pads.length) this.request = requestAnimationFrame((next) => this.poll(next, now));
  }

  destroy() {
    this.stop.abort();
    cancelAnimationFrame(this.request);
  }
}
