// Small helpers that everything seen is made with.

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Drawn on 24 x 24, in lines.
const ICONS = {
  pause: "M8 5v14M16 5v14",
  play: "M7 4.5v15l12-7.5z",
  record: "M12 6.5a5.5 5.5 0 1 0 .01 0z",
  stop: "M7 7h10v10H7z",
  video: "M4 5h16v14H4zM8 5v14M16 5v14M4 9.7h4M4 14.3h4M16 9.7h4M16 14.3h4",
  save: "M12 4v11M7.5 11l4.5 4.5 4.5-4.5M5 20h14",
  open: "M12 16V5M7.5 9.5L12 5l4.5 4.5M5 20h14",
  settings: "M4 8h8M18 8h2M4 16h2M12 16h8M15 5.2a2.8 2.8 0 1 0 .01 0zM9 13.2a2.8 2.8 0 1 0 .01 0z",
  full: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  back: "M9 6L4 11l5 5M4 11h10a6 6 0 0 1 6 6v2",
  branch: "M7 8v8M7 3.6a2.2 2.2 0 1 0 .01 0zM7 16a2.2 2.2 0 1 0 .01 0zM17 5.6a2.2 2.2 0 1 0 .01 0zM17 10c0 4-10 1.5-10 6",
  close: "M6 6l12 12M18 6L6 18",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon; its name is read out and shown on hovering. */
export function iconButton(name, label, act, extra = {}) {
  const button = make("button", { type: "button", class: "wm-icon", title: label, "aria-label": label, ...extra }, icon(name));
  button.addEventListener("click", act);
  return button;
}

export const pretty = (name) => name.replace(/[-_]+/g, " ");

export function clock(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
}

export function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
}
