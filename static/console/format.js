// The console's formats of numbers, sizes and times. They are short and have a constant width.

import { serverNow } from "./api.js"

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 })
const TENTHS = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 })
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 })
const BYTE_UNITS = ["B", "KB", "MB", "GB", "TB"]

/** A whole number with separators, or a dash if it is not known. */
export function count(value) {
  return value === null || value === undefined ? "–" : WHOLE.format(value)
}

/** Events per second: with one decimal below ten. */
export function rate(value) {
  if (value === null || value === undefined) return "–"
  return value > 0 && value < 10 ? TENTHS.format(value) : WHOLE.format(value)
}

/** A number for the axis of a chart, such as `12K`. */
export function compact(value) {
  return COMPACT.format(value)
}

/** A size in bytes, such as `1.5 KB`. */
export function bytes(value) {
  if (value === null || value === undefined) return "–"
  let size = value
  let unit = 0
  while (size >= 1000 && unit < BYTE_UNITS.length - 1) [size, unit] = [size / 1000, unit + 1]
  return `${unit === 0 ? WHOLE.format(size) : TENTHS.format(size)} ${BYTE_UNITS[unit]}`
}

/** `one` or `many` with its count: `1 event`, `2,034 events`. */
export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`
}

/** The time of day in this browser's time zone: `22:04:31`. Takes milliseconds or RFC 3339. */
export function time(moment) {
  return parts(moment).time
}

/** `22:04`. `timeZone` is `UTC`, or none for that of this browser. */
export function hourAndMinute(moment, timeZone) {
  return new Date(moment).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", timeZone })
}

/** `28 Nov`. */
export function day(moment, timeZone) {
  return new Date(moment).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone })
}

/** An hour, day or month of UTC, by its beginning: `2026-11-28 22:00 UTC`, `2026-11-28` or `2026-11`. */
export function period(from, by) {
  const text = new Date(from).toISOString()
  if (by === "hour") return `${text.slice(0, 10)} ${text.slice(11, 16)} UTC`
  return text.slice(0, by === "day" ? 10 : 7)
}

/** `2026-11-28 22:04`, or a dash for none. */
export function dateTime(moment) {
  if (moment === null || moment === undefined) return "–"
  const { date, time } = parts(moment)
  return `${date} ${time.slice(0, 5)}`
}

/** `2026-11-28 22:04:31`. */
export function toTheSecond(moment) {
  const { date, time } = parts(moment)
  return `${date} ${time}`
}

/** The time since a moment, or a dash for never: `12 s`, `5 min`, `3 h`, `12 d`. */
export function since(moment) {
  if (moment === null || moment === undefined) return "–"
  const seconds = Math.max(0, Math.round((serverNow() - new Date(moment).getTime()) / 1000))
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`
  return `${Math.floor(seconds / 86_400)} d`
}

function parts(moment) {
  const at = new Date(moment)
  const two = value => String(value).padStart(2, "0")
  return {
    date: `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`,
    time: `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`,
  }
}
