# The session that `tailtape dev` records if it is given no command: each line is shown as if typed, and then run.
show() {
    printf '\033[1;32mdev@tailnet\033[0m:\033[1;34m~\033[0m$ '
    sleep 0.1
    printf '%s\n' "$1"
    sleep 0.1
    eval "$1"
    sleep 0.05
}

show 'uname -sm'
show 'id -un'
show 'stty size'
show 'printf "Grüße, 世界, \360\237\221\213\n"'
show 'for c in 31 33 32 36 34 35; do printf "\033[${c}m████\033[0m"; sleep 0.05; done; echo'
show 'for n in 1 2 3 4 5; do printf "\rkeeping what is seen: %d/5" $n; sleep 0.1; done; echo'
printf '\033[1;32mdev@tailnet\033[0m:\033[1;34m~\033[0m$ exit\n'
