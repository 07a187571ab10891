#!/usr/bin/env bash
# Puts PROJECT, REGION and IMAGE into a template: deploy/render.sh deploy/api.yaml service.yaml
set -euo pipefail
: "${PROJECT:?}" "${REGION:?}" "${IMAGE:?}"
sed -e "s|\${PROJECT}|$PROJECT|g" -e "s|\${REGION}|$REGION|g" -e "s|\${IMAGE}|$IMAGE|g" "$1" >"$2"
if grep -n '\${' "$2"; then
    echo "$1: what stands above is not filled in" >&2
    exit 1
fi
