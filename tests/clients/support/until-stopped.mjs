// Joins `public:test-app:foo-topic`, waits for the event `msg`, and then for the server to stop.
//
//   node until-stopped.mjs ws://127.0.0.1:4000
//
// Prints a line for each of them. Exits with 0 if the event and then a close with code 1012 have arrived, else with 1.

import WebSocket from "ws"

const DEADLINE_MS = 60_000
const RESTART = 1012

const topic = "public:test-app:foo-topic"
const socket = new WebSocket(`${process.argv[2]}/socket/websocket?vsn=2.0.0`)
let isHeard = false

const overdue = setTimeout(() => end("nothing more within a minute", 1), DEADLINE_MS)

socket.on("open", () => socket.send(JSON.stringify(["1", "1", topic, "phx_join", {}])))
socket.on("message", data => {
  const [, , , event, payload] = JSON.parse(data)
  if (event === "phx_reply") {
    if (payload.status !== "ok") return end(`refused: ${JSON.stringify(payload)}`, 1)
    console.log("joined")
  } else if (event === "msg") {
    isHeard = true
    console.log(`heard ${JSON.stringify(payload)}`)
  }
})
socket.on("close", code => end(`closed with ${code}`, isHeard && code === RESTART ? 0 : 1))
socket.on("error", error => end(`failed: ${error.message}`, 1))

function end(words, code) {
  clearTimeout(overdue)
  console.log(words)
  process.exitCode = code
  socket.terminate()
}
