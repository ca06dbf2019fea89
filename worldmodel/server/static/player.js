// Frames: header, decode, a play-out queue of two, paint, acknowledge.

const MAGIC = 0x31464d57; // "WMF1", little-endian
const QUEUE = 2;
export const FLAG_RESET = 4;

/** Header and payload of one binary frame; the layout is in worldmodel/server/protocol.py. Null when it is not one. */
export function parseFrame(buffer) {
  if (buffer.byteLength < 32) return null;
  const view = new DataView(buffer);
  const header = view.getUint8(7);
  const length = view.getUint32(28, true);
  if (view.getUint32(0, true) !== MAGIC || buffer.byteLength !== header + length) return null;
  return {
    flags: view.getUint8(6),
    frame: view.getUint32(8, true),
    actionSeq: view.getUint32(12, true),
    chunk: view.getUint32(16, true),
    width: view.getUint16(24, true),
    height: view.getUint16(26, true),
    payload: new Uint8Array(buffer, header, length),
  };
}

export class Player {
  /** @param {{ack: function(number), onPaint: function(object, number)}} handlers called at paint */
  constructor(canvas, handlers) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.handlers = handlers;
    this.period = 1000 / 16;
    this.queue = [];
    this.painted = [];
    this.restart();
  }

  /** A new connection: its first frame may carry any number. */
  restart() {
    this.newest = 0;
    this.clear();
  }

  clear() {
    for (const { bitmap } of this.queue) bitmap.close();
    this.queue.length = 0;
  }

  async push(buffer) {
    const frame = parseFrame(buffer);
    if (!frame) throw new Error("The server sent a frame that this page does not understand.");
    const bitmap = await createImageBitmap(new Blob([frame.payload], { type: "image/jpeg" }));
    if (frame.frame <= this.newest) return bitmap.close(); // decoding finished out of order
    this.newest = frame.frame;
    if (frame.flags & FLAG_RESET) this.clear();
    this.queue.push({ ...frame, payload: null, bitmap });
    while (this.queue.length > QUEUE) this.queue.shift().bitmap.close();
    this.request ??= requestAnimationFrame((now) => this.paint(now));
  }

  paint(now) {
    this.request = null;
    const due = this.queue.length >= QUEUE || now - (this.lastPaint ?? 0) >= 0.6 * this.period;
    if (due && this.queue.length) {
      const frame = this.queue.shift();
      if (this.canvas.width !== frame.width || this.canvas.height !== frame.height) {
        this.canvas.width = frame.width;
        this.canvas.height = frame.height;
      }
      this.context.drawImage(frame.bitmap, 0, 0);
      frame.bitmap.close();
      this.lastPaint = now;
      this.painted.push(now);
      while (now - this.painted[0] > 2000) this.painted.shift();
      this.handlers.ack(frame.frame);
      this.handlers.onPaint(frame, performance.now());
    }
    if (this.queue.length) this.request = requestAnimationFrame((next) => this.paint(next));
  }

  /** Frames painted a second, over the last two seconds. */
  get fps() {
    const times = this.painted;
    const now = performance.now();
    const recent = times.filter((t) => now - t < 2000);
    return recent.length < 2 ? 0 : (1000 * (recent.length - 1)) / (recent.at(-1) - recent[0]);
  }
}
