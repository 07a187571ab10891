#!/usr/bin/env bash
# Asks the service for a report on drift every morning: PROJECT=... REGION=... [SERVICE=droneseg-api] deploy/schedule-drift.sh
set -euo pipefail
: "${PROJECT:?}" "${REGION:?}"
service="${SERVICE:-droneseg-api}"
caller="droneseg-invoke@$PROJECT.iam.gserviceaccount.com"
url="$(gcloud run services describe "$service" --region="$REGION" --project="$PROJECT" --format='value(status.url)')"
gcloud run services add-iam-policy-binding "$service" --region="$REGION" --project="$PROJECT" \
    --member="serviceAccount:$caller" --role=roles/run.invoker --quiet >/dev/null
key="$(gcloud secrets versions access latest --secret=droneseg-api-key --project="$PROJECT")"
for action in update create; do
    headers=--headers
    [ "$action" = update ] && headers=--update-headers
    gcloud scheduler jobs "$action" http "$service-drift" --project="$PROJECT" --location="$REGION" \
        --schedule="0 6 * * *" --time-zone=Etc/UTC --uri="$url/drift?n=500" --http-method=GET --attempt-deadline=600s \
        --oidc-service-account-email="$caller" --oidc-token-audience="$url" "$headers=X-API-Key=$key" && exit 0
done
echo "the job could neither be updated nor created" >&2
exit 1
