// A world to walk through, in any element of any page:
//
//   import { mountWorld } from "/wm-static/client.js";
//   const world = mountWorld(document.querySelector("#world"));
//
// Everything that it asks comes from the server that served this file. `index.html` beside it is a whole page in this manner.

import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { make } from "./dom.js";
import { Gallery } from "./gallery.js";
import { Gamepads } from "./gamepad.js";
import { PathMap } from "./map.js";
import { MemoryView } from "./memory.js";
import { FLAG_RESET, Player } from "./player.js";
import { download, Recorder } from "./recorder.js";
import { Settings } from "./settings.js";
import { Sticks } from "./sticks.js";
import { Timeline } from "./timeline.js";
import { Toolbar } from "./toolbar.js";
import { Transfers } from "./transfers.js";
import { buildView } from "./view.js";

const NOTES = {
  connecting: ["Connecting…"],
  lost: ["Connection lost", "Trying to come back to your world…"],
  idle: ["You were away", "Somebody else was waiting and walks now.", "Walk again"],
  replaced: ["Open in another window", "This world goes on there.", "Take it back here"],
  engine: ["The world stopped", "The model failed. The server's log says why.", "Start again"],
  failed: ["That did not work", "The server did not understand this page. Reload it.", "Try again"],
};
const STEP_BACK_S = 2; // Backspace
const ASK_MEMORY_MS = 1000;

/**
 * Build the view inside `element` and connect.
 *
 * @param {HTMLElement} element is filled; its own content is replaced
 * @param {{url?: string, base?: string, token?: string, gallery?: HTMLElement|false, onWorld?: function(object): void}} options
 *   base: address of the server, default where this file came from; url: of the stream, default below base;
 *   token: the server's access token, default what follows #token= in the page's address;
 *   gallery: where the start pictures go, default below the view; false: nowhere; onWorld: called with the server's `world` messages
 * @returns a handle: reset, setPrompt, setSpeed, pause, resume, togglePause, rewind, fork, switchTo, discard, save, upload, open, focus,
 *   stats, destroy, state
 */
export function mountWorld(element, options = {}) {
  const base = new URL(options.base ?? new URL("../", import.meta.url), document.baseURI);
  const streamUrl = new URL(options.url ?? new URL("api/v1/stream", base), document.baseURI);
  streamUrl.protocol = streamUrl.protocol.replace("http", "ws");

  const token = options.token ?? new URLSearchParams(location.hash.slice(1)).get("token");
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};

  const state = { status: "connecting", ready: null, world: null, stats: null, memory: null, frame: 0, chunk: 0, seq: 0 };
  const latencies = [];
  const pending = new Map(); // seq -> time of the key event, until a frame shows it
  const send = (message) => connection.send(message);

  const view = buildView(element, base);
  const settings = new Settings(liked);
  const player = new Player(view.canvas, { ack: (frame) => send({ type: "ack", frame }), onPaint: painted });
  const controls = new Controls(view.canvas, view.pads, sendAction);
  const sticks = new Sticks(controls);
  const gamepads = new Gamepads(controls, { onPause: togglePause, onFound: () => view.toast("Gamepad connected: it walks and looks.", true) });
  const recorder = new Recorder(view.canvas, (on) => toolbar.recording(on ? 0 : null));
  const toolbar = new Toolbar(
    view.dock,
    { pause: togglePause, record, video: () => save("video"), save: () => save("world"), open, settings: showSettings, full: fullScreen },
    Boolean(recorder.type),
  );
  const transfers = new Transfers(base, authorization, send, (kind, on) => toolbar.busy(kind === "video" ? "video" : "save", on));
  const timeline = new Timeline(view.line, base, { onRewind: rewind, onFork: fork, onSwitch: switchTo, onDiscard: discard, onPeek: view.peek });
  const map = new PathMap(view.map);
  const memory = new MemoryView(view.memory, base);
  const connection = new Connection(streamUrl.href, { onState: connected, onMessage: received, onFrame: arrived }, ticket);
  const gallery = options.gallery === false ? null : new Gallery(options.gallery ?? element.appendChild(make("div")), base, { onPick: pick, onFile: upload });

  async function ticket() {
    if (!token) return null;
    const response = await fetch(new URL("api/v1/sessions", base), { method: "POST", headers: authorization });
    return (await response.json()).ticket ?? null;
  }

  // ---- keys out, frames in ----

  function sendAction(keys, look, time) {
    const seq = state.seq + 1;
    if (send({ type: "action", seq, keys, look })) {
      state.seq = seq;
      if (pending.size < 200) pending.set(seq, time);
    }
  }

  function painted(frame, now) {
    state.frame = frame.frame;
    state.chunk = frame.chunk;
    recorder.paint();
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

  // ---- what the server says ----

  function connected(status, detail) {
    state.status = status;
    if (status === "open") return view.note(null);
    controls.release();
    transfers.failed();
    if (status === "connecting") {
      state.seq = state.frame = 0;
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
    focus();
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

  const answers = {
    ready(message) {
      state.ready = message;
      controls.bindings = message.keys;
      player.period = 1000 / message.fps;
      timeline.period = message.chunk / message.fps;
      view.size(message.width, message.height);
      if (message.notice) view.notice(message.notice);
      if (controls.held.length) controls.changed();
      send({ type: "config", quality: settings.get("quality") });
      if (settings.get("speed") && !message.resumed) send({ type: "config", speed: settings.get("speed") });
    },
    queued({ position, of, eta_s: eta }) {
      const wait = eta ? ` About ${Math.ceil(eta)} s.` : "";
      view.note("You are in line", `Place ${position} of ${of}.${wait}`);
    },
    world(message) {
      state.world = message;
      view.world(message);
      toolbar.paused(message.paused);
      timeline.mark(message);
      gallery?.mark(message.gallery, message.image);
      options.onWorld?.(message);
      element.dispatchEvent(new CustomEvent("wm-world", { detail: message, bubbles: true }));
    },
    chunk(message) {
      timeline.add(message);
      map.show(timeline.moments, state.memory?.tiles ?? []);
      askMemory();
    },
    timeline(message) {
      timeline.load(message);
      state.memory = null;
      map.show(timeline.moments, []);
      askMemory();
    },
    memory(message) {
      state.memory = message;
      map.show(timeline.moments, message.tiles);
      memory.show(message, (at) => timeline.moments.find((moment) => moment.at === at)?.thumbnail);
    },
    saved(message) {
      transfers.saved(message);
      view.toast(`${message.name} is ready.`, true);
    },
    stats(message) {
      state.stats = message;
      timeline.forget(message.first ?? 0);
      figures();
      if (recorder.on) toolbar.recording(recorder.seconds);
    },
    error(message) {
      if (state.status !== "open") return; // the connection ends, and says why
      transfers.failed();
      view.curtain(false);
      view.toast(message.message);
      view.say("");
    },
  };

  function received(message) {
    answers[message.type]?.(message);
  }

  function askMemory() {
    if (!settings.get("panels")) return;
    state.asking ??= setTimeout(() => {
      state.asking = null;
      send({ type: "ask", about: "memory" });
    }, ASK_MEMORY_MS);
  }

  // ---- what the visitor wants ----

  function pick(name, image) {
    reset(name ? { gallery: name } : { image });
    focus();
  }

  /** Start anew: {gallery}, {image: id} or {world: id}, or none of them for where this world began; with {prompt} and {seed}. */
  function reset(request = {}) {
    if (send({ type: "reset", ...request })) view.curtain(true);
  }

  function rewind(at) {
    if (!send({ type: "rewind", at })) return;
    view.curtain(true, "Going back");
    view.say("Going back.");
    focus();
  }

  function fork(at) {
    if (!send({ type: "fork", at })) return;
    view.curtain(true, "Branching off");
    view.say("Branching off. The other way is kept.");
    focus();
  }

  function switchTo(branch) {
    if (send({ type: "switch", branch })) view.curtain(true, "Changing over");
    focus();
  }

  function discard(branch) {
    send({ type: "discard", branch });
  }

  function save(kind) {
    transfers.ask(kind);
    view.say(kind === "video" ? "Making the video." : "Saving the world.");
  }

  async function sent(kind, file, said) {
    view.say(said);
    try {
      return await transfers.upload(kind, file);
    } catch (error) {
      view.toast(error.message);
      return null;
    }
  }

  /** Start from a picture file. Resolves to true when the server took it. */
  async function upload(file, prompt) {
    const image = await sent("images", file, "Uploading the picture.");
    if (!image) return false;
    gallery?.addUpload(image, file);
    reset({ image, ...(prompt ? { prompt } : {}) });
    focus();
    return true;
  }

  /** Go on in a saved world. Resolves to true when the server took it. */
  async function open(file) {
    const world = await sent("worlds", file, "Opening the world.");
    if (!world) return false;
    reset({ world });
    focus();
    return true;
  }

  async function record() {
    if (!recorder.on) return recorder.start(state.ready?.fps ?? 16);
    const { blob, ending } = await recorder.stop();
    const url = URL.createObjectURL(blob);
    download(url, `world.${ending}`);
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  function pause() {
    return send({ type: "pause" });
  }

  function resume() {
    focus();
    return send({ type: "resume" });
  }

  function togglePause() {
    return state.world?.paused ? resume() : pause();
  }

  function setSpeed(speed) {
    settings.set("speed", speed);
    return send({ type: "config", speed });
  }

  function fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else view.stage.requestFullscreen?.().catch(() => view.toast("Full screen is not allowed here."));
    focus();
  }

  function focus() {
    view.canvas.focus({ preventScroll: true });
  }

  // ---- what the visitor likes ----

  function showSettings() {
    const dialog = settings.dialog();
    element.append(dialog);
    dialog.showModal();
  }

  function liked(name) {
    controls.sensitivity = settings.get("sensitivity");
    controls.inverted = settings.get("invert");
    if (name === undefined || name === "touch") view.controls(settings.sticks ? sticks : null);
    if (name === undefined || name === "panels") view.panels(settings.get("panels"));
    if (name === "panels") askMemory();
    if (name === "details") figures();
    if (name === "quality") send({ type: "config", quality: settings.get("quality") });
  }

  function stats() {
    const sorted = [...latencies].sort((a, b) => a - b);
    return { fps: player.fps, latency: sorted.length ? sorted[sorted.length >> 1] : null, latencies: [...latencies], server: state.stats };
  }

  function figures() {
    view.figures({ ...stats(), memory: state.memory, seconds: timeline.at * timeline.period, details: settings.get("details") });
  }

  view.canvas.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.code === "Space") togglePause();
    else if (event.code === "Backspace" && timeline.at > timeline.first) {
      rewind(Math.max(timeline.first, timeline.at - Math.round(STEP_BACK_S / timeline.period)));
    } else return;
    event.preventDefault();
  });
  view.meter.addEventListener("click", () => settings.set("details", !settings.get("details")));
  view.canvas.addEventListener("wm-nolock", () => view.toast("This page may not hold the mouse; drag to look around."));
  view.onResume = resume;
  view.onDrop = (file) => (file.name.endsWith(".world") ? open(file) : upload(file));
  liked();
  connection.connect();

  return {
    state, controls, connection, timeline, settings,
    reset, rewind, fork, switchTo, discard, save, upload, open, stats, pause, resume, togglePause, setSpeed, focus,
    setPrompt: (prompt) => send({ type: "config", prompt }),
    destroy() {
      controls.destroy();
      gamepads.destroy();
      connection.close();
      gallery?.destroy();
      element.replaceChildren();
    },
  };
}
