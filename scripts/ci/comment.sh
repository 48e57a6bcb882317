#!/usr/bin/env bash
# A step of action.yml: put $RUNNER_TEMP/sqtool/comment.md on pull request PULL_REQUEST, in place of the comment that
# an earlier job left there. A comment that cannot be written (a fork's token may only read) never fails the job.
set -uo pipefail

file=$RUNNER_TEMP/sqtool/comment.md
[ -s "$file" ] || exit 0
IFS= read -r marker <"$file" || exit 0

# `viewerDidAuthor`: somebody else's comment may begin with the same marker, and is none of ours to change.
# shellcheck disable=SC2016  # these are GraphQL's variables, not the shell's
comments='query($owner: String!, $name: String!, $number: Int!, $endCursor: String) {
  repository(owner: $owner, name: $name) {
    pullRequest(number: $number) {
      comments(first: 100, after: $endCursor) {
        nodes { id viewerDidAuthor body }
        pageInfo { hasNextPage endCursor }
      }
    }
  }
}'
# shellcheck disable=SC2016
update='mutation($id: ID!, $body: String!) { updateIssueComment(input: {id: $id, body: $body}) { clientMutationId } }'

put() {
  local ids
  # The marker is made of letters, digits and .-_ alone, so it can stand in a filter.
  ids=$(gh api graphql --paginate -f query="$comments" \
    -f owner="${GITHUB_REPOSITORY%%/*}" -f name="${GITHUB_REPOSITORY#*/}" -F number="$PULL_REQUEST" \
    --jq ".data.repository.pullRequest.comments.nodes[]
      | select(.viewerDidAuthor and (.body | startswith(\"$marker\"))) | .id") || return 1
  if [ -n "$ids" ]; then
    gh api graphql --silent -f query="$update" -f id="${ids%%$'\n'*}" -F body="@$file"
  else
    gh pr comment "$PULL_REQUEST" --repo "$GITHUB_REPOSITORY" --body-file "$file"
  fi
}

case "$marker" in
  '<!-- sqtool:'*' -->') ;;
  *) echo "::warning title=sqtool::the comment has no marker and is not written"; exit 0 ;;
esac
put || echo "::warning title=sqtool::the pull request got no comment; the job needs pull-requests: write"
