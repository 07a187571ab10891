#!/usr/bin/env bash
# Everything an empty project of Google Cloud needs, once; running it again changes nothing that is there.
#   PROJECT=my-project REGION=europe-west1 [REPOSITORY=owner/name] deploy/setup.sh
set -euo pipefail
: "${PROJECT:?name the project}" "${REGION:?name the region, such as europe-west1}"
cd "$(dirname "$0")"
export CLOUDSDK_CORE_PROJECT="$PROJECT" # of this script; your own configuration stays
account() { echo "$1@$PROJECT.iam.gserviceaccount.com"; }
there() { "$@" >/dev/null 2>&1; }
try() { # an account that was made a moment ago is not known everywhere yet
    local left
    for left in 5 4 3 2 1; do
        "$@" >/dev/null && return
        echo "trying again in 15 s, $left times more" >&2
        sleep 15
    done
    "$@" >/dev/null
}

gcloud services enable --quiet run.googleapis.com artifactregistry.googleapis.com cloudbuild.googleapis.com \
    secretmanager.googleapis.com aiplatform.googleapis.com cloudscheduler.googleapis.com monitoring.googleapis.com \
    iam.googleapis.com iamcredentials.googleapis.com sts.googleapis.com cloudresourcemanager.googleapis.com storage.googleapis.com

there gcloud artifacts repositories describe droneseg --location="$REGION" ||
    gcloud artifacts repositories create droneseg --location="$REGION" --repository-format=docker

# models, data and trainings stay, what they replaced for 30 days; records and reports go after 90 days
models="gs://$PROJECT-droneseg" records="gs://$PROJECT-droneseg-records" sources="gs://${PROJECT}_cloudbuild" # where `gcloud builds submit` puts the code
for bucket in "$models" "$records" "$sources"; do
    there gcloud storage buckets describe "$bucket" ||
        gcloud storage buckets create "$bucket" --location="$REGION" --uniform-bucket-level-access --public-access-prevention
done
gcloud storage buckets update "$models" --versioning --lifecycle-file=lifecycle-models.json --quiet
gcloud storage buckets update "$records" --lifecycle-file=lifecycle.json --quiet

if ! there gcloud secrets describe droneseg-api-key; then
    python3 -c 'import secrets; print(secrets.token_urlsafe(32), end="")' |
        gcloud secrets create droneseg-api-key --replication-policy=automatic --data-file=-
fi

for name in serve train deploy read invoke; do
    there gcloud iam service-accounts describe "$(account "droneseg-$name")" ||
        gcloud iam service-accounts create "droneseg-$name" --display-name="droneseg: $name"
done
on_bucket() { try gcloud storage buckets add-iam-policy-binding "$1" --member="serviceAccount:$(account "$2")" --role="$3" --quiet; }
on_project() { try gcloud projects add-iam-policy-binding "$PROJECT" --member="serviceAccount:$(account "$1")" --role="$2" --condition=None --quiet; }
on_account() { try gcloud iam service-accounts add-iam-policy-binding "$(account "$1")" --member="serviceAccount:$(account "$2")" --role=roles/iam.serviceAccountUser --quiet; }

# the service: reads models, writes records, reads its key, sends its metrics
on_bucket "$models" droneseg-serve roles/storage.objectViewer
on_bucket "$records" droneseg-serve roles/storage.objectUser
on_project droneseg-serve roles/monitoring.metricWriter
on_project droneseg-serve roles/logging.logWriter
for name in serve deploy; do # who deploys asks the service something
    try gcloud secrets add-iam-policy-binding droneseg-api-key --member="serviceAccount:$(account "droneseg-$name")" \
        --role=roles/secretmanager.secretAccessor --quiet
done
# a training: reads data, writes results
on_bucket "$models" droneseg-train roles/storage.objectUser
on_project droneseg-train roles/logging.logWriter
# who deploys: builds, pushes, replaces services that run as droneseg-serve; promotes models
on_project droneseg-deploy roles/run.developer
on_project droneseg-deploy roles/run.invoker
try gcloud artifacts repositories add-iam-policy-binding droneseg --location="$REGION" \
    --member="serviceAccount:$(account droneseg-deploy)" --role=roles/artifactregistry.writer --quiet
on_bucket "$sources" droneseg-deploy roles/storage.objectViewer
on_project droneseg-deploy roles/logging.logWriter
on_bucket "$models" droneseg-deploy roles/storage.objectUser
on_account droneseg-serve droneseg-deploy
# who compares candidates: reads, and nothing else
on_bucket "$models" droneseg-read roles/storage.objectViewer

if [ -n "${REPOSITORY:-}" ]; then
    # GitHub's workflows of this one repository become these accounts, without a key that could be lost
    number="$(gcloud projects describe "$PROJECT" --format='value(projectNumber)')"
    pool="projects/$number/locations/global/workloadIdentityPools/github"
    there gcloud iam workload-identity-pools describe github --location=global ||
        gcloud iam workload-identity-pools create github --location=global
    there gcloud iam workload-identity-pools providers describe github --location=global --workload-identity-pool=github ||
        gcloud iam workload-identity-pools providers create-oidc github --location=global \
            --workload-identity-pool=github --issuer-uri=https://token.actions.githubusercontent.com \
            --attribute-mapping=google.subject=assertion.sub,attribute.repository=assertion.repository,attribute.place="assertion.repository + ':' + (has(assertion.environment) ? assertion.environment : '')" \
            --attribute-condition="assertion.repository == '$REPOSITORY'"
    trust() { gcloud iam service-accounts add-iam-policy-binding "$(account "$1")" --role=roles/iam.workloadIdentityUser --member="$2" --quiet >/dev/null; }
    trust droneseg-read "principalSet://iam.googleapis.com/$pool/attribute.repository/$REPOSITORY"
    for environment in production model-promotion; do
        # of the jobs in this environment alone; not by GitHub's subject, which has several forms
        trust droneseg-deploy "principalSet://iam.googleapis.com/$pool/attribute.place/$REPOSITORY:$environment"
    done
    echo "in GitHub, variables of the repository: WORKLOAD_IDENTITY_PROVIDER=$pool/providers/github PROJECT=$PROJECT REGION=$REGION"
    echo "  READING_SERVICE_ACCOUNT=$(account droneseg-read)"
    echo "of the environments production and model-promotion: SERVICE_ACCOUNT=$(account droneseg-deploy)"
fi
echo "done: $PROJECT is ready; next: docs/deploy.md, Deploy"
