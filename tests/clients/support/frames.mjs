// What a server says over a WebSocket, frame by frame.

const HEAD_END = "\r\n\r\n"
const TEXT = 0x1

/** Cuts a server's bytes, its handshake first, into frames and lets go on those whose text is `wanted`. */
export class Frames {
  constructor(wanted) {
    this.wanted = wanted
    this.bytes = Buffer.alloc(0)
    this.isOpen = false
  }

  /** The bytes that go on, of these and of what was not whole before. */
  sift(chunk) {
    this.bytes = Buffer.concat([this.bytes, chunk])
    const whole = []
    for (let length; (length = this.next()) > 0 && length <= this.bytes.length; ) {
      const piece = this.bytes.subarray(0, length)
      this.bytes = this.bytes.subarray(length)
      if (this.goesOn(piece)) whole.push(piece)
      this.isOpen = true
    }
    return Buffer.concat(whole)
  }

  /** How long the handshake or the frame is that comes next; 0 while that cannot be told. A server's are not masked. */
  next() {
    const { bytes } = this
    if (!this.isOpen) {
      const end = bytes.indexOf(HEAD_END)
      return end < 0 ? 0 : end + HEAD_END.length
    }
    if (bytes.length < 2) return 0
    const short = bytes[1] & 0x7f
    if (short < 126) return 2 + short
    const head = short === 126 ? 4 : 10
    if (bytes.length < head) return 0
    return head + (short === 126 ? bytes.readUInt16BE(2) : Number(bytes.readBigUInt64BE(2)))
  }

  goesOn(piece) {
    const isText = this.isOpen && (piece[0] & 0x0f) === TEXT
    return !isText || this.wanted(piece.toString("utf8"))
  }
}
