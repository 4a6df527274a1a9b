# The image of one MegaCluster program: a static binary and nothing else, not as root.
#
#   docker build --build-arg BIN=megacluster-operator -t REGISTRY/megacluster-operator:TAG .
#
# BIN is megacluster-operator, megacluster-store, megacluster-watchcache or megacluster-scheduler.
ARG BIN=megacluster-operator
ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-bookworm AS build
ARG BIN
ARG REVISION=unknown
WORKDIR /src
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static" MEGACLUSTER_REVISION=${REVISION}
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
 && cargo build --release --locked --target "$target" --bin "$BIN" \
 && install -D "target/$target/release/$BIN" "/out/usr/local/bin/$BIN" \
 && strip --strip-debug "/out/usr/local/bin/$BIN"

FROM scratch AS base
ARG BIN
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="${BIN}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/ /
USER 65532:65532
WORKDIR /

# ENTRYPOINT takes no variable: one stage for each program, and BIN names the one that is built.
FROM base AS megacluster-operator
ENTRYPOINT ["/usr/local/bin/megacluster-operator"]

FROM base AS megacluster-store
ENTRYPOINT ["/usr/local/bin/megacluster-store"]

FROM base AS megacluster-watchcache
ENTRYPOINT ["/usr/local/bin/megacluster-watchcache"]

FROM base AS megacluster-scheduler
ENTRYPOINT ["/usr/local/bin/megacluster-scheduler"]

FROM ${BIN}
