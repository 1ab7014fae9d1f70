# Builds Herald, then puts the one binary into a small image that runs as nobody in particular.

FROM rust:1-bookworm AS build
WORKDIR /herald
COPY . .
RUN cargo build --release --locked --bin herald

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --create-home --home-dir /herald --shell /usr/sbin/nologin herald
COPY --from=build /herald/target/release/herald /usr/local/bin/herald
USER herald
WORKDIR /herald
ENV HERALD_ENV=production
EXPOSE 4000
HEALTHCHECK --interval=10s --timeout=3s --start-period=40s \
  CMD curl --fail --silent --show-error "http://127.0.0.1:${PORT:-4000}/health" || exit 1
ENTRYPOINT ["herald"]
CMD ["serve"]
