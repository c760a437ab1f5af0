-- wrk: the lines of $BODIES in turn, as POST bodies.
local bodies, at = {}, 0
for line in io.lines(os.getenv("BODIES")) do
  bodies[#bodies + 1] = wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, line)
end
function request()
  at = at % #bodies + 1
  return bodies[at]
end
function done(summary, latency, requests)
  local seconds = summary.duration / 1e6
  io.write(string.format("requests %d  rate %.0f/s  p50 %.3f  p95 %.3f  p99 %.3f  max %.3f ms  errors %d\n", summary.requests,
    summary.requests / seconds, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    summary.errors.status + summary.errors.read + summary.errors.connect + summary.errors.timeout))
end
