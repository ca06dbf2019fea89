// The socket: says hello, keeps the resume token, hands out messages and frames, and comes back after a drop.

import { HttpSocket } from "./http-socket.js";

const PROTOCOL = 1;
const SUBPROTOCOL = "wm.v1";
const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 5000;

// Close codes after which coming back by itself would be wrong: the visitor is asked first.
const FINAL = { 4400: "failed", 4401: "failed", 4426: "failed", 4408: "idle", 4409: "replaced", 4500: "engine" };
const BUSY = 4429;

export class Connection {
  /**
   * @param {string} url of the stream (ws: or wss:)
   * @param {function(): Promise<string|null>} ticket asked for before every hello; null where the server wants none
   * @param {{onState: function(string, object), onMessage: function(object), onFrame: function(ArrayBuffer)}} handlers
   *   states: connecting, open, lost {inMs}, busy {inMs, message}, failed | idle | replaced | engine {message}
   */
  constructor(url, handlers, ticket = async () => null) {
    this.url = url;
    this.handlers = handlers;
    this.ticket = ticket;
    this.attempt = 0;
    this.closed = false;
    this.overHttp = false;
    this.key = `worldmodel.resume ${url}`;
    this.wake = () => {
      if (this.timer && !document.hidden && this.mayHurry) this.connect();
    };
    addEventListener("online", this.wake);
    document.addEventListener("visibilitychange", this.wake);
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  connect() {
    clearTimeout(this.timer);
    this.timer = null;
    this.closed = false;
    this.error = null;
    this.handlers.onState("connecting", {});
    const socket = (this.socket = this.overHttp ? new HttpSocket(`${this.url.replace(/^ws/, "http")}/http`) : new WebSocket(this.url, [SUBPROTOCOL]));
    socket.binaryType = "arraybuffer";
    this.opened = false;
    socket.onopen = async () => {
      this.opened = !this.overHttp;
      const ticket = await this.ticket().catch(() => null);
      if (socket === this.socket) this.send({ type: "hello", proto: PROTOCOL, ticket, resume: recall(this.key) });
    };
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      if (typeof event.data !== "string") return this.handlers.onFrame(event.data);
      const message = JSON.parse(event.data);
      if (message.type === "ready") {
        this.attempt = 0;
        this.opened = true;
        remember(this.key, message.resume);
        this.handlers.onState("open", {});
      } else if (message.type === "error") {
        this.error = message;
      }
      this.handlers.onMessage(message);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.dropped(event.code);
    };
  }

  dropped(code) {
    this.socket = null;
    if (this.closed) return;
    if (!this.opened && !this.error) this.overHttp = !this.overHttp; // something on the way may refuse one of the two
    const message = this.error?.message ?? "";
    if (code in FINAL) {
      if (code !== 4409) remember(this.key, null);
      this.handlers.onState(FINAL[code], { message });
      return;
    }
    let inMs = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.attempt++) * (0.8 + 0.4 * Math.random());
    if (code === BUSY) inMs = 1000 * (this.error?.retry_after_s ?? 4);
    this.mayHurry = code !== BUSY;
    this.timer = setTimeout(() => this.connect(), inMs);
    this.handlers.onState(code === BUSY ? "busy" : "lost", { inMs, message });
  }

  /** True when the message left. */
  send(message) {
    if (!this.isOpen) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** Leave for good: the place is free for the next visitor at once. */
  close() {
    this.send({ type: "bye" });
    this.closed = true;
    clearTimeout(this.timer);
    remember(this.key, null);
    removeEventListener("online", this.wake);
    document.removeEventListener("visibilitychange", this.wake);
    this.socket?.close();
  }
}

// The token lives as long as the tab, so that a reload goes on in the same world. Storage may be forbidden in a frame.
function remember(key, token) {
  try {
    if (token) sessionStorage.setItem(key, token);
    else sessionStorage.removeItem(key);
  } catch {
    remember.fallback = token;
  }
}

function recall(key) {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return remember.fallback ?? null;
  }
}
