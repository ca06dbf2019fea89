// Recording what is seen, in the browser: nothing is asked of the server.

const TYPES = ["video/mp4;codecs=avc1", "video/webm;codecs=vp9", "video/webm"];
const SHORTEST_SIDE = 512; // small pictures are enlarged, as the page shows them

export class Recorder {
  /** @param {function(boolean)} onChange told whether it records */
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.onChange = onChange;
  }

  get type() {
    return globalThis.MediaRecorder ? TYPES.find((type) => MediaRecorder.isTypeSupported(type)) : undefined;
  }

  get on() {
    return this.recorder?.state === "recording";
  }

  start(fps) {
    const scale = Math.max(1, Math.ceil(SHORTEST_SIDE / Math.min(this.canvas.width, this.canvas.height)));
    this.copy = document.createElement("canvas");
    [this.copy.width, this.copy.height] = [scale * this.canvas.width, scale * this.canvas.height];
    this.paint();
    this.parts = [];
    this.begun = performance.now();
    this.recorder = new MediaRecorder(this.copy.captureStream(fps), { mimeType: this.type, videoBitsPerSecond: 4_000_000 });
    this.recorder.ondataavailable = (event) => this.parts.push(event.data);
    this.recorder.start(1000);
    this.onChange(true);
  }

  /** Called for every painted frame. */
  paint() {
    if (!this.copy) return;
    this.copy.getContext("2d", { alpha: false }).drawImage(this.canvas, 0, 0, this.copy.width, this.copy.height);
  }

  get seconds() {
    return (performance.now() - this.begun) / 1000;
  }

  /** Resolves to the video: a Blob, and the ending of its file's name. */
  async stop() {
    const { recorder } = this;
    await new Promise((resolve) => {
      recorder.onstop = resolve;
      recorder.stop();
    });
    for (const track of recorder.stream.getTracks()) track.stop();
    this.copy = null;
    this.onChange(false);
    const type = recorder.mimeType.split(";")[0];
    return { blob: new Blob(this.parts, { type }), ending: type.split("/")[1] };
  }
}

/** Hand a file to the visitor. */
export function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}
