// The frames that a server sends over a WebSocket.

const HEAD_END = "\r\n\r\n"
const TEXT = 0x1

/** Divides a server's bytes into the handshake and frames, and passes on the frames whose text is `wanted`. */
export class Frames {
  constructor(wanted) {
    this.wanted = wanted
    this.bytes = Buffer.alloc(0)
    this.isOpen = false
  }

  /** Takes the server's next bytes, and returns the frames to pass on that are complete with them. */
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

  /** The length of the next frame or of the handshake; 0 while it is unknown. Frames of a server are not masked. */
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
