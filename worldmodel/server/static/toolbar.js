// The buttons below the picture.

import { clock, icon, iconButton, make } from "./dom.js";

export class Toolbar {
  /**
   * @param {object} acts pause, record, video, save, settings, full: called on a click; open: called with a file
   * @param {boolean} records whether this browser can record
   */
  constructor(element, acts, records) {
    this.pause = iconButton("pause", "Pause", acts.pause);
    this.record = iconButton("record", "Record what you see", acts.record, { "aria-pressed": "false" });
    this.record.classList.add("wm-record");
    this.record.hidden = !records;
    this.time = make("span", { class: "wm-time" });
    this.record.append(this.time);
    this.video = iconButton("video", "Download a video of the way so far", acts.video);
    this.save = iconButton("save", "Save this world to a file", acts.save);
    this.file = make("input", { type: "file", accept: ".world", hidden: "", "aria-label": "World file" });
    this.file.addEventListener("change", () => {
      if (this.file.files[0]) acts.open(this.file.files[0]);
      this.file.value = "";
    });
    const open = iconButton("open", "Open a saved world", () => this.file.click());
    const settings = iconButton("settings", "Settings", acts.settings);
    const full = iconButton("full", "Full screen", acts.full);
    const group = (...buttons) => make("div", { class: "wm-group" }, ...buttons);
    element.append(group(this.pause), group(this.record, this.video), group(this.save, open, this.file), group(settings, full));
  }

  paused(on) {
    if (this.pause.dataset.on === String(on)) return;
    this.pause.dataset.on = String(on);
    this.pause.replaceChildren(icon(on ? "play" : "pause"));
    this.pause.title = on ? "Continue" : "Pause";
    this.pause.setAttribute("aria-label", this.pause.title);
  }

  recording(seconds) {
    const on = seconds !== null;
    this.record.setAttribute("aria-pressed", String(on));
    this.time.textContent = on ? clock(Math.floor(seconds)).replace(".0", "") : "";
    this.record.title = on ? "Stop recording" : "Record what you see";
    this.record.setAttribute("aria-label", this.record.title);
  }

  busy(kind, on) {
    this[kind].disabled = on;
    this[kind].classList.toggle("wm-busy", on);
  }
}
