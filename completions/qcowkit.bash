# qcowkit.bash - completion of qcowkit, qemu-img and qemu-io command lines for bash.
# The table below is written by completions/update from `qcowkit --list-options`; a test compares
# the two. Columns: command, option, kind of its argument, fixed values.

_qcowkit_table() {
    cat <<'END'
# table begins
amend -h flag
amend --help flag
amend -f format
amend --format format
amend -o text
amend --force flag
amend -t cache
amend --image-opts flag
amend --object object
amend -p flag
amend --progress-fd descriptor
amend -q flag
bench -h flag
bench --help flag
bench -c text
bench -d text
bench -f format
bench --format format
bench --flush-interval text
bench -i text threads native io_uring
bench --aio text threads native io_uring
bench -n flag
bench --native flag
bench --no-drain flag
bench -o size
bench --pattern text
bench -s size
bench -S size
bench --random flag
bench --threads text
bench -w flag
bench -t cache
bench -U flag
bench --force-share flag
bench --image-opts flag
bench --object object
bench --output output human json
bench -q flag
bitmap -h flag
bitmap --help flag
bitmap --add flag
bitmap --remove flag
bitmap --clear flag
bitmap --enable flag
bitmap --disable flag
bitmap --merge text
bitmap --list flag
bitmap -b file
bitmap -F format
bitmap -g size
bitmap -f format
bitmap --format format
bitmap --image-opts flag
bitmap --object object
bitmap --output output human json
bitmap -U flag
bitmap --force-share flag
check -h flag
check --help flag
check -f format
check --format format
check --image-opts flag
check --object object
check --output output human json
check -r text leaks all
check --repair text leaks all
check --explain flag
check --plan flag
check --allow text copies entries snapshots bitmaps header lossy rollback l1
check --undo file
check --no-undo flag
check -p flag
check --progress-fd descriptor
check -T cache
check -U flag
check --force-share flag
check -q flag
commit -h flag
commit --help flag
commit -f format
commit --format format
commit -t cache
commit -b file
commit -d flag
commit -r size
commit --image-opts flag
commit --object object
commit -p flag
commit --progress-fd descriptor
commit -q flag
compare -h flag
compare --help flag
compare -f format
compare -F format
compare -s flag
compare -l text
compare -L text
compare -T cache
compare -U flag
compare --force-share flag
compare --image-opts flag
compare --object object
compare -p flag
compare --progress-fd descriptor
compare -q flag
convert -h flag
convert --help flag
convert -f format
convert --format format
convert -O format
convert -o text
convert -B file
convert -F format
convert -S text
convert -n flag
convert --target-is-zero flag
convert -W flag
convert -m text
convert -r size
convert -C flag
convert -c flag
convert --compress-level text
convert -l text
convert --internal-snapshot text
convert --salvage flag
convert --bitmaps flag
convert --skip-broken-bitmaps flag
convert --image-opts flag
convert --target-image-opts flag
convert -t cache
convert -T cache
convert -U flag
convert --force-share flag
convert --object object
convert -p flag
convert --progress-fd descriptor
convert -q flag
create -h flag
create --help flag
create -f format
create -o text
create -b file
create -F format
create -u flag
create --object object
create -q flag
dd -h flag
dd --help flag
dd -f format
dd --format format
dd -O format
dd -l text
dd --internal-snapshot text
dd -U flag
dd --force-share flag
dd --image-opts flag
dd --object object
info -h flag
info --help flag
info -f format
info --format format
info --image-opts flag
info --object object
info --output output human json
info --backing-chain flag
info --children flag
info -U flag
info --force-share flag
map -h flag
map --help flag
map -f format
map --format format
map -s size
map --start-offset size
map -l size
map --max-length size
map --internal-snapshot text
map --output output human json
map -U flag
map --force-share flag
map --image-opts flag
map --object object
measure -h flag
measure --help flag
measure -f format
measure --format format
measure -O format
measure -o text
measure --size size
measure -l text
measure --internal-snapshot text
measure --output output human json
measure -U flag
measure --force-share flag
measure --image-opts flag
measure --object object
rebase -h flag
rebase --help flag
rebase -f format
rebase --format format
rebase -b file
rebase -F format
rebase -u flag
rebase -c flag
rebase --compress flag
rebase -t cache
rebase -T cache
rebase -U flag
rebase --force-share flag
rebase --image-opts flag
rebase --object object
rebase -p flag
rebase --progress-fd descriptor
rebase -q flag
resize -h flag
resize --help flag
resize -f format
resize --format format
resize --image-opts flag
resize --object object
resize --preallocation text off metadata falloc full
resize --shrink flag
resize -q flag
snapshot -h flag
snapshot --help flag
snapshot -l flag
snapshot -c text
snapshot -a text
snapshot -d text
snapshot --rename text
snapshot --to text
snapshot --freed flag
snapshot --output output human json
snapshot --image-opts flag
snapshot --object object
snapshot -U flag
snapshot --force-share flag
snapshot -q flag
undo -h flag
undo --help flag
undo -q flag
io -h flag
io --help flag
io --object object
io --image-opts flag
io -c text
io --cmd text
io -f format
io --format format
io -r flag
io --read-only flag
io -s flag
io --snapshot flag
io -n flag
io --nocache flag
io -C flag
io --copy-on-read flag
io -m flag
io --misalign flag
io -k flag
io --native-aio flag
io -i text
io --aio text
io -t cache
io --cache cache
io -d text
io --discard text
io -T text
io --trace text
io -l text
io --internal-snapshot text
io -U flag
io --force-share flag
io -V flag
io --version flag
# table ends
END
}

_qcowkit_formats='qcow2 raw'
_qcowkit_caches='none writeback writethrough directsync unsafe'

# _qcowkit_row COMMAND OPTION: the rest of its row
_qcowkit_row() {
    local command option rest
    while read -r command option rest; do
        if [[ $command == "$1" && $option == "$2" ]]; then
            echo "$rest"
            return
        fi
    done < <(_qcowkit_table)
}

# _qcowkit_commands: each command once
_qcowkit_commands() {
    local command rest
    while read -r command rest; do
        [[ $command == '#' ]] || echo "$command"
    done < <(_qcowkit_table) | sort -u
}

_qcowkit_options() {
    local command option rest
    while read -r command option rest; do
        [[ $command != "$1" ]] || echo "$option"
    done < <(_qcowkit_table)
}

_qcowkit_files() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
}

_qcowkit_words() { # WORDS CURRENT
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
}

# _qcowkit_value KIND VALUES CURRENT: the argument of an option
_qcowkit_value() {
    case $1 in
    format) _qcowkit_words "$_qcowkit_formats" "$3" ;;
    cache) _qcowkit_words "$_qcowkit_caches" "$3" ;;
    file) _qcowkit_files "$3" ;;
    *) _qcowkit_words "$2" "$3" ;;
    esac
}

# The command is the first word that is no option.
_qcowkit_command() {
    local i
    if [[ ${1##*/} == qemu-io ]]; then
        echo io
        return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        -T | --trace) ((i++)) ;;
        -*) ;;
        *)
            echo "${COMP_WORDS[i]}"
            return
            ;;
        esac
    done
}

_qcowkit() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command kind values
    # bash takes "--output=json" for three words
    if [[ $current == '=' ]]; then
        current=
    elif [[ $before == '=' ]]; then
        before=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    COMPREPLY=()
    command=$(_qcowkit_command "$1")
    if [[ -z $command ]]; then
        local names
        names=$(_qcowkit_commands)
        [[ ${1##*/} == qcowkit ]] || names=$(grep -vx io <<<"$names")
        _qcowkit_words "$names --help --version --trace" "$current"
        return
    fi
    read -r kind values < <(_qcowkit_row "$command" "$before")
    if [[ -n $kind && $kind != flag ]]; then
        _qcowkit_value "$kind" "$values" "$current"
    elif [[ $current == -* ]]; then
        _qcowkit_words "$(_qcowkit_options "$command")" "$current"
    else
        _qcowkit_files "$current"
    fi
}

complete -F _qcowkit qcowkit qemu-img qemu-io
