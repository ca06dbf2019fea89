// The stream over plain HTTP with the face of a WebSocket, where something on the way refuses those: one long answer to read from,
// and requests to say something. The records are described in docs/protocol.md.

const JSON_RECORD = 1;
const RECORD_HEADER = 5;
const RETRY_MS = 100;

export class HttpSocket {
  /** @param {string} url of the stream (http: or https:); the first message sent has to be `hello` */
  constructor(url) {
    this.url = url;
    this.readyState = WebSocket.CONNECTING;
    this.waiting = [];
    this.stop = new AbortController();
    queueMicrotask(() => {
      this.readyState = WebSocket.OPEN;
      this.onopen?.();
    });
  }

  send(text) {
    if (!this.reading) {
      this.reading = this.read(text);
      return;
    }
    this.waiting.push(text);
    this.say();
  }

  async close() {
    await this.posting; // bye has to arrive
    this.ended(1000);
  }

  ended(code) {
    if (this.readyState === WebSocket.CLOSED) return;
    this.readyState = WebSocket.CLOSED;
    this.stop.abort();
    this.onclose?.({ code });
  }

  async read(hello) {
    let code = 1006;
    try {
      const response = await fetch(this.url, { method: "POST", body: hello, signal: this.stop.signal });
      if (!response.ok) return this.ended(code);
      const reader = response.body.getReader();
      let bytes = new Uint8Array(0);
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const longer = new Uint8Array(bytes.length + value.length);
        longer.set(bytes);
        longer.set(value, bytes.length);
        bytes = longer;
        for (let size; bytes.length >= RECORD_HEADER && bytes.length >= (size = recordSize(bytes)); bytes = bytes.slice(size)) {
          code = this.take(bytes[0], bytes.slice(RECORD_HEADER, size)) ?? code;
        }
      }
    } catch {
      // the connection is gone
    }
    this.ended(code);
  }

  /** One record; the close code, if it is the last. */
  take(kind, data) {
    if (kind !== JSON_RECORD) {
      this.onmessage?.({ data: data.buffer });
      return undefined;
    }
    const text = new TextDecoder().decode(data);
    const message = JSON.parse(text);
    if (message.type === "closed") return message.code;
    if (message.type === "channel") {
      this.channel = message.channel;
      this.say();
    } else {
      this.onmessage?.({ data: text });
    }
    return undefined;
  }

  /** Say what waits, one request after the other. */
  say() {
    if (this.posting || !this.channel || !this.waiting.length || this.readyState !== WebSocket.OPEN) return;
    this.posting = this.post().finally(() => {
      this.posting = null;
      this.say();
    });
  }

  async post() {
    while (this.waiting.length && this.readyState === WebSocket.OPEN) {
      const lines = this.waiting.splice(0, 20);
      try {
        const response = await fetch(`${this.url}/${this.channel}`, { method: "POST", body: lines.join("\n"), signal: this.stop.signal });
        if (response.status === 429) {
          this.waiting.unshift(...lines);
          await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
        } else if (!response.ok) this.ended(1006);
      } catch {
        this.ended(1006);
      }
    }
  }
}

function recordSize(bytes) {
  return RECORD_HEADER + new DataView(bytes.buffer, bytes.byteOffset).getUint32(1, true);
}
