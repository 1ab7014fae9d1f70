// phoenix.js, one published release per generation, and what each of them can do.

/**
 * One row per generation; `module` is the name under which package.json installs it.
 *
 * - `patient`: waits for replies for as long as it takes, until 1.1.
 * - `flushesLate`: what was pushed before it had joined is sent with its next join, until 1.1.
 * - `staysAway`: connects again only after a close event whose code is not 1000, from 1.4.0 to 1.4.2; its own heartbeat
 *   timer closes with 1000, and its long-poll closes without an event.
 * - `rejoinsDenied`: a join that was refused is tried again, from 1.4.3.
 * - `leavesDuplicates`: a second channel object of a topic makes the first one leave, from 1.5.
 * - `presence`: functions over an object that the page keeps, or an object that keeps it.
 * - `bytes`: reads and writes binary frames, from 1.5.7; `posts`: also knows how long-poll carries them, from 1.7.
 * - `namesInUtf8`: measures a binary frame's names as a server does, from 1.8.7.
 * - `fallsBack`: has `longPollFallbackMs`, from 1.7.11.
 */
export const GENERATIONS = [
  { label: "phoenix-js 1.0.3", module: "phoenix-js", vsn: "1.0.0", patient: true, flushesLate: true },
  { label: "phoenix 1.2.1", module: "phoenix-1.2", vsn: "1.0.0", presence: "functions" },
  { label: "phoenix 1.3.5", module: "phoenix-1.3", vsn: "2.0.0", presence: "functions" },
  { label: "phoenix 1.4.0", module: "phoenix-1.4.0", vsn: "2.0.0", presence: "objects", staysAway: true },
  { label: "phoenix 1.4.18", module: "phoenix-1.4", vsn: "2.0.0", presence: "objects", rejoinsDenied: true },
  { label: "phoenix 1.5.14", module: "phoenix-1.5", ...modern({ bytes: true }) },
  { label: "phoenix 1.6.16", module: "phoenix-1.6", ...modern({ bytes: true }) },
  { label: "phoenix 1.7.21", module: "phoenix-1.7", ...modern({ bytes: true, posts: true, fallsBack: true }) },
  { label: "phoenix 1.8.16", module: "phoenix", ...modern({ bytes: true, posts: true, namesInUtf8: true, fallsBack: true }) },
]

export const OLDEST = GENERATIONS[0]
export const LATEST = GENERATIONS[GENERATIONS.length - 1]

/** A fault of phoenix.js: what it lost over long-poll it never connects again. */
export const STAYS_AWAY = ({ staysAway, transport }) =>
  staysAway && transport === "long-poll" && "it reconnects only after a close event, and its long-poll has none"

/** How a client may be connected. */
export const TRANSPORTS = ["WebSocket", "long-poll"]

/** Every one of these generations over every transport. */
export function overEachTransport(generations) {
  return TRANSPORTS.flatMap(transport => generations.map(generation => ({ ...generation, transport })))
}

/** What all have had since 1.5. */
function modern(more) {
  return { vsn: "2.0.0", presence: "objects", rejoinsDenied: true, leavesDuplicates: true, ...more }
}
