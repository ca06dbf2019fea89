// A world to walk through, in any element of any page:
//
//   import { mountWorld } from "/wm-static/client.js";
//   const world = mountWorld(document.querySelector("#world"));
//
// Everything that it asks comes from the server that served this file.

import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { FLAG_RESET, Player } from "./player.js";
import { buildView, Strip } from "./view.js";

const NOTES = {
  connecting: ["Connecting…"],
  lost: ["Connection lost", "Trying to come back to your world…"],
  idle: ["You were away", "Somebody else was waiting and walks now.", "Walk again"],
  replaced: ["Open in another window", "This world goes on there.", "Take it back here"],
  engine: ["The world stopped", "The model failed. The server's log says why.", "Start again"],
  failed: ["That did not work", "The server did not understand this page. Reload it.", "Try again"],
};

/**
 * Build the view inside `element` and connect.
 *
 * @param {HTMLElement} element is filled; its own content is replaced
 * @param {{url?: string, base?: string, token?: string, gallery?: boolean, onWorld?: function(object): void}} options
 *   base: address of the server, default where this file came from; url: of the stream, default below base;
 *   token: the server's access token, default what follows #token= in the page's address;
 *   gallery: whether to show the strip of start pictures, default true; onWorld: called with the server's `world` messages
 * @returns a handle: reset, setPrompt, setSpeed, pause, resume, togglePause, upload, focus, stats, destroy, state
 */
export function mountWorld(element, options = {}) {
  const base = new URL(options.base ?? new URL("../", import.meta.url), document.baseURI);
  const streamUrl = new URL(options.url ?? new URL("api/v1/stream", base), document.baseURI);
  streamUrl.protocol = streamUrl.protocol.replace("http", "ws");

  const token = options.token ?? new URLSearchParams(location.hash.slice(1)).get("token");
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};

  const state = { status: "connecting", ready: null, world: null, stats: null, frame: 0, chunk: 0, seq: 0 };
  const latencies = [];
  const pending = new Map(); // seq -> time of the key event, until a frame shows it
  const view = buildView(element, base);
  const player = new Player(view.canvas, { ack: (frame) => connection.send({ type: "ack", frame }), onPaint: painted });
  const controls = new Controls(view.canvas, view.pads, sendAction);
  const connection = new Connection(streamUrl.href, { onState: connected, onMessage: received, onFrame: arrived }, ticket);
  const strip = options.gallery === false ? null : new Strip(view.strip, base, { onPick: pick, onFile: upload });

  async function ticket() {
    if (!token) return null;
    const response = await fetch(new URL("api/v1/sessions", base), { method: "POST", headers: authorization });
    return (await response.json()).ticket ?? null;
  }

  function sendAction(keys, look, time) {
    const seq = state.seq + 1;
    if (connection.send({ type: "action", seq, keys, look })) {
      state.seq = seq;
      if (pending.size < 200) pending.set(seq, time);
    }
  }

  function painted(frame, now) {
    state.frame = frame.frame;
    state.chunk = frame.chunk;
    if (frame.flags & FLAG_RESET) view.curtain(false);
    for (const [seq, time] of pending) {
      if (seq > frame.actionSeq) break;
      pending.delete(seq);
      latencies.push(now - time);
      if (latencies.length > 100) latencies.shift();
    }
  }

  function arrived(buffer) {
    player.push(buffer).catch((error) => view.toast(error.message));
  }

  function connected(status, detail) {
    state.status = status;
    if (status === "open") return view.note(null);
    controls.release();
    if (status === "connecting") {
      state.seq = 0;
      pending.clear();
      player.restart();
      if (element.querySelector(".wm-note-on")) return; // keep saying why
    }
    if (status === "busy") return countdown(detail);
    const [title, text, button] = NOTES[status];
    view.note(title, status === "failed" && detail.message ? detail.message : text, button && { label: button, act: again });
  }

  function again() {
    connection.connect();
    view.canvas.focus({ preventScroll: true });
  }

  function countdown({ inMs, message }) {
    const until = performance.now() + inMs;
    const tick = () => {
      if (state.status !== "busy") return;
      const seconds = Math.max(0, Math.ceil((until - performance.now()) / 1000));
      view.note("Someone else is walking here", seconds ? `Trying again in ${seconds} s.` : "Trying again…", null, { quiet: true });
      if (seconds) setTimeout(tick, 1000);
    };
    view.say(message);
    tick();
  }

  function received(message) {
    if (message.type === "ready") {
      state.ready = message;
      controls.bindings = message.keys;
      player.period = 1000 / message.fps;
      view.size(message.width, message.height);
      if (controls.held.length) controls.changed();
    } else if (message.type === "world") {
      state.world = message;
      view.world(message);
      strip?.mark(message.gallery, message.image);
      options.onWorld?.(message);
      element.dispatchEvent(new CustomEvent("wm-world", { detail: message, bubbles: true }));
    } else if (message.type === "stats") {
      state.stats = message;
      view.meter(stats());
    } else if (message.type === "error" && (message.code === "image" || message.code === "not_found")) {
      view.toast(message.message);
    }
  }

  function pick(gallery, image) {
    reset(gallery ? { gallery } : { image });
    view.canvas.focus({ preventScroll: true });
  }

  /** Start anew: {gallery}, or {image: id}, or neither for where this world began; with {prompt} and {seed}. */
  function reset(request = {}) {
    if (connection.send({ type: "reset", ...request })) view.curtain(true);
  }

  /** Start from a picture file. Resolves to true when the server took it. */
  async function upload(file, prompt) {
    view.say("Uploading the picture.");
    let answer;
    try {
      const response = await fetch(new URL("api/v1/images", base), { method: "POST", body: file, headers: authorization });
      answer = await response.json();
    } catch {
      answer = { error: "The picture could not be sent." };
    }
    if (!answer.id) {
      view.toast(answer.error ?? "The picture could not be used.");
      return false;
    }
    strip?.addUpload(answer.id, file);
    reset({ image: answer.id, ...(prompt ? { prompt } : {}) });
    view.canvas.focus({ preventScroll: true });
    return true;
  }

  function stats() {
    const sorted = [...latencies].sort((a, b) => a - b);
    return { fps: player.fps, latency: sorted.length ? sorted[sorted.length >> 1] : null, latencies: [...latencies], server: state.stats };
  }

  const pause = () => connection.send({ type: "pause" });
  const resume = () => connection.send({ type: "resume" });
  const handle = {
    state,
    controls,
    connection,
    reset,
    upload,
    stats,
    pause,
    resume,
    togglePause: () => (state.world?.paused ? resume() : pause()),
    setPrompt: (prompt) => connection.send({ type: "config", prompt }),
    setSpeed: (speed) => connection.send({ type: "config", speed }),
    focus: () => view.canvas.focus({ preventScroll: true }),
    destroy() {
      controls.destroy();
      connection.close();
      element.replaceChildren();
    },
  };
  view.onResume = resume;
  view.onDrop = (file) => upload(file);
  view.canvas.addEventListener("wm-nolock", () => view.toast("This page may not hold the mouse; drag to look around."));
  connection.connect();
  return handle;
}
