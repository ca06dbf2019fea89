// What is held: keys on the focused view, on-screen buttons, sticks and gamepads, and mouse look by dragging or by pointer lock.

const LOOK_EVERY_MS = 33;
const LOCKED_DEGREES_PER_PIXEL = 0.12;
const DRAG_DEGREES_ACROSS = 80; // dragging over the whole width of the view
const CLICK_SLOP_PX = 5;

export class Controls {
  /**
   * @param {HTMLElement} view the focusable view; keys act only while it has the focus
   * @param {HTMLElement} pads holds buttons with data-code
   * @param {function(string[], number[], number): void} send keys held, degrees turned [right, down], time of the event
   */
  constructor(view, pads, send) {
    this.view = view;
    this.pads = pads;
    this.send = send;
    this.bindings = {};
    this.keys = new Set();
    this.buttons = new Set();
    this.others = new Map(); // stick, gamepad -> codes that it holds
    this.sensitivity = 1;
    this.inverted = false;
    this.look = [0, 0];
    this.lookSent = 0;
    this.stop = new AbortController();
    this.listenToKeys();
    this.listenToButtons();
    this.listenToPointer();
  }

  get held() {
    return [...new Set([...this.keys, ...this.buttons, ...[...this.others.values()].flat()])];
  }

  get locked() {
    return document.pointerLockElement === this.view;
  }

  on(target, names, handler, options = {}) {
    for (const name of names.split(" ")) target.addEventListener(name, handler, { ...options, signal: this.stop.signal });
  }

  changed(time = performance.now()) {
    const actions = new Set(this.held.map((code) => this.bindings[code]));
    for (const button of this.pads.querySelectorAll("[data-code]")) {
      button.classList.toggle("wm-held", actions.has(this.bindings[button.dataset.code]));
    }
    const look = this.look;
    this.look = [0, 0];
    this.send(this.held, look, time);
  }

  /** What a stick or a gamepad holds now, all of it. */
  hold(source, codes) {
    const known = codes.filter((code) => code in this.bindings);
    if (known.join() === (this.others.get(source) ?? []).join()) return;
    this.others.set(source, known);
    this.changed();
  }

  /** Let go of everything. */
  release(time) {
    if (!this.held.length) return;
    this.keys.clear();
    this.buttons.clear();
    this.others.clear();
    this.changed(time);
  }

  listenToKeys() {
    this.on(this.view, "keydown", (event) => {
      if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.code === "Escape") return this.view.blur();
      if (!(event.code in this.bindings)) return;
      event.preventDefault(); // arrows would scroll the page
      if (event.repeat || this.keys.has(event.code)) return;
      this.keys.add(event.code);
      this.changed(event.timeStamp);
    });
    this.on(this.view, "keyup", (event) => {
      if (event.key === "Meta") return this.release(event.timeStamp); // macOS tells no keyup while Meta is down
      if (this.keys.delete(event.code)) this.changed(event.timeStamp);
    });
    this.on(this.view, "blur", () => {
      this.release();
      if (this.locked) document.exitPointerLock();
    });
    this.on(window, "blur pagehide", () => this.release());
    this.on(document, "visibilitychange", () => document.hidden && this.release());
  }

  listenToButtons() {
    const press = (event, down) => {
      const code = event.target.closest?.("[data-code]")?.dataset.code;
      if (!code || down === this.buttons.has(code)) return;
      if (down) this.buttons.add(code);
      else this.buttons.delete(code);
      this.changed(event.timeStamp);
    };
    this.on(this.pads, "pointerdown", (event) => {
      if (event.button !== 0 || !event.target.closest("[data-code]")) return;
      event.preventDefault(); // the view keeps the focus
      event.target.closest("[data-code]").setPointerCapture(event.pointerId);
      press(event, true);
    });
    this.on(this.pads, "pointerup pointercancel lostpointercapture", (event) => press(event, false));
    this.on(this.pads, "keydown", (event) => {
      if ((event.code === "Space" || event.code === "Enter") && event.target.dataset.code) {
        event.preventDefault();
        if (!event.repeat) press(event, true);
      }
    });
    this.on(this.pads, "keyup focusout", (event) => {
      if (event.type === "focusout" || event.code === "Space" || event.code === "Enter") press(event, false);
    });
    this.on(this.pads, "contextmenu", (event) => event.target.closest("[data-code]") && event.preventDefault()); // a long touch
  }

  listenToPointer() {
    let hadFocus = false;
    let drag = null;
    let travelled = 0;
    this.on(this.view, "pointerdown", (event) => {
      if (event.button !== 0 || this.locked) return;
      hadFocus = document.activeElement === this.view;
      travelled = 0;
      drag = { id: event.pointerId, x: event.clientX, y: event.clientY };
      this.view.setPointerCapture(event.pointerId);
      this.view.focus({ preventScroll: true });
    });
    this.on(this.view, "pointermove", (event) => {
      if (this.locked) {
        this.turn(event.movementX * LOCKED_DEGREES_PER_PIXEL, event.movementY * LOCKED_DEGREES_PER_PIXEL);
      } else if (drag?.id === event.pointerId) {
        const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
        travelled += Math.hypot(dx, dy);
        drag = { id: drag.id, x: event.clientX, y: event.clientY };
        const degrees = DRAG_DEGREES_ACROSS / this.view.clientWidth;
        if (travelled > CLICK_SLOP_PX) this.turn(-dx * degrees, -dy * degrees); // the picture follows the hand
      }
    });
    this.on(this.view, "pointerup pointercancel lostpointercapture", () => (drag = null));
    this.on(this.view, "click", () => {
      if (hadFocus && travelled <= CLICK_SLOP_PX && !this.locked && matchMedia("(pointer: fine)").matches) this.lock();
    });
  }

  async lock() {
    try {
      await this.view.requestPointerLock({ unadjustedMovement: true });
    } catch {
      try {
        await this.view.requestPointerLock(); // raw movement is not available everywhere
      } catch {
        this.view.dispatchEvent(new CustomEvent("wm-nolock", { bubbles: true })); // a frame may forbid it; dragging works
      }
    }
  }

  /** Turn the view by degrees to the right and down; sent at most every LOOK_EVERY_MS. */
  turn(right, down) {
    this.look[0] += right * this.sensitivity;
    this.look[1] += down * this.sensitivity * (this.inverted ? -1 : 1);
    this.lookTimer ??= setTimeout(
      () => {
        this.lookTimer = null;
        this.lookSent = performance.now();
        if (this.look[0] || this.look[1]) this.changed();
      },
      Math.max(0, LOOK_EVERY_MS - (performance.now() - this.lookSent)),
    );
  }

  destroy() {
    this.stop.abort();
    clearTimeout(this.lookTimer);
    if (this.locked) document.exitPointerLock();
  }
}
